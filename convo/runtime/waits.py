"""The name of every wait for something outside the process, and what it bounds: add the name of a new deadline here.

A name is the metric label, the log key and the text of the error; its first word is what is waited for. Those of the
dependencies are made of their rows in ``convo.dependencies``. ``tests/test_deadlines.py`` fails for a name that is not
here.
"""

from __future__ import annotations

from convo.dependencies import DEPENDENCIES

NAMES: dict[str, str] = {
    # a client
    "web.request": "one request as a whole, from the first byte of its head to its answer",
    "web.body": "reading a request's body",
    "web.decode": "decoding a large body, in a thread",
    "web.accept": "from a decoded conversation to its commit",
    "web.encode": "making a large answer, in a thread",
    "web.metrics": "writing the metrics, in a thread",
    "web.tasks": "writing the list of tasks, in a thread",
    "web.answer": "sending a part of an answer to a client",
    # the database: a wait for a connection and one unit of work on it
    "db.accept": "storing one batch of conversations",
    "db.read": "reading for one request",
    "db.list": "reading a page of conversations",
    "db.log": "reading one log for a client",
    "db.take": "reading one log for its job",
    "db.watch": "looking for jobs that ended in other processes",
    "db.lease": "leasing jobs, or looking for suspects",
    "db.bell": "waking the workers of other processes, or listening for that",
    "db.renew": "renewing all leases of this process",
    "db.part": "storing parts",
    "db.settle": "settling jobs",
    "db.fail": "failing or burying a job",
    "db.park": "parking a job",
    "db.ticket": "storing what to ask a service with later",
    "db.release": "giving jobs back",
    "db.retry": "making dead letters ready again",
    "db.dead": "counting dead letters by their reason",
    "db.give_back": "giving back attempts that were spent on a fault of a dependency",
    "db.rescue": "rescuing leases that ended, and burying what is given up",
    "db.sample": "counting jobs for the metrics",
    "db.books": "comparing the tables with the ledger",
    "db.audit": "comparing days with the ledger, and the tables with each other",
    "db.audit_log": "reading a page of the audit log",
    "db.audit_rows": "storing rows of the audit log that have no other transaction",
    "db.alerts": "checking whether the database answers, and whether this process leads",
    "db.vitals": "reading the figures behind the shared alerts",
    "db.acknowledge": "noting that somebody has reviewed a dead letter",
    "db.courier": "reading events for endpoints or RabbitMQ, and noting what these have confirmed",
    "db.webhooks": "reading or changing the endpoints of webhooks, for a request",
    "db.events": "numbering events, and removing those that are over",
    "db.retire": "looking for what is over, and removing a few rows of it",
    "db.retire_month": "reading a whole month before it is dropped",
    "db.months": "making the partitions of the next months, and beginning a month",
    "db.job_room": "rebuilding the indexes of jobs after a backlog",
    "db.tenants": "looking whether there are several tenants, and indexes for that",
    "db.erase": "erasing a conversation, or a batch of a user's",
    "db.erasures": "following the list of erasures, or looking for what is to be erased again",
    "db.untold": "noting what a memory service was told of an erasure",
    "db.scrub": "writing tables anew, so that nothing of what was erased is left in a file",
    "db.import": "adding totals of an earlier service to relationships",
    "db.canary": "erasing canaries that came through",
    "db.ping": "checking whether the database answers",
    "db.settings": "comparing the settings of this process with those of the others",
    "db.enter": "signing this process in",
    "db.leave": "signing this process out",
    "db.history": "comparing the database's history with what was seen of it",
    "db.receipts": "asking whether the database knows what was acknowledged",
    "db.contents": "reading what a restore would replace",
    "db.holders": "reading who has a session on the database",
    "db.explain": "reading why a conversation is in its state",
    "db.keys": "reading or changing the keys of clients",
    "db.close": "closing the connections",
    "db.hosts": "looking for a newer primary among several hosts",
    "db.inspect": "reading the server's settings",
    "db.schema": "reading the schema's version",
    "db.migrate": "bringing the schema up to date, after any other process that does so",
    # the dependencies: the language model, the memory service
    **{name: text for row in DEPENDENCIES.values() for name, text in row.waits.items()},
    # endpoints of webhooks
    "webhook.attempt": "one attempt to deliver an event to an endpoint, or to ping it",
    # RabbitMQ
    "rabbitmq.publish": "one attempt to connect where there is no connection, and to publish a page of events",
    "rabbitmq.hold": "the pause that RabbitMQ asked for",
    "rabbitmq.bulkhead": "a free place among the concurrent calls of RabbitMQ",
    "rabbitmq.close": "closing a connection to RabbitMQ",
    "rabbitmq.check": "the connection that `convo check` opens to RabbitMQ",
    # an erasure
    "erase.accepts": "the end of the accepts that were under way when an erasure began",
    "erasures.file": "reading or writing the list of erasures in the data folder",
    # the sinks of alerts
    "alerts.deliver": "one attempt to deliver a message to a sink",
    "alerts.message": "all attempts to deliver one message to a sink",
    # a canary
    "canary.accept": "the receipt of a canary",
    "canary.return": "the whole way of a canary, from its receipt to its score",
    # a job
    "analysis.job": "one analysis as a whole, with all retries of its calls",
    "analysis.local": "the embedded analyst on a long text, in a thread",
    "analysis.decode": "unpacking a long log, in a thread",
    "job.part": "storing a found part, together with parts of other jobs",
    "job.ending": "the ending of a job, which no cancellation reaches",
    # the embedded PostgreSQL
    "embedded.version": "asking PostgreSQL's programs for their version",
    "embedded.copy": "copying the programs to where their user can run them",
    "embedded.chown": "giving a data folder to its user",
    "embedded.initdb": "making a data folder",
    "embedded.psql": "making or checking the roles and databases of the embedded PostgreSQL",
    "embedded.rules": "until the server goes by other rules of who may log in",
    "embedded.start": "the server's start, with its recovery",
    "embedded.stop": "the server's orderly stop",
    "embedded.stop_at_once": "the server's immediate stop",
    "embedded.look": "looking for processes that serve a data folder",
    "embedded.orphan": "the orderly stop of a server of an earlier start",
    "embedded.orphan_at_once": "the immediate stop of a server of an earlier start",
    "embedded.drop": "removing the folders of a move to another major version",
    "embedded.measure": "adding up the size of a data folder",
    "embedded.trim": "cutting the server's log back",
    # the folder of this process
    "history.save": "writing what was seen of the database's history",
    # backup and restore
    "backup.pg_dump": "writing the backup",
    "backup.list": "reading the head of a backup",
    "backup.sync": "flushing the backup to the disk",
    "backup.restore": "restoring the database",
    "backup.sums": "summing up every row of the database, before and after a move to another major version",
    "backup.kill": "the end of the programs after a restore",
}
