"""The name of every wait for something outside the process, and what it bounds; it knows neither clock nor metric.

A name is the metric label, the log key and the text of the error; its first word is what is waited for. A name that is
not here fails ``tests/test_deadlines.py``.
"""

from __future__ import annotations

NAMES: dict[str, str] = {
    # a client
    "web.request": "one request as a whole, from the first byte of its head to its answer",
    "web.body": "reading a request's body",
    "web.decode": "decoding a large body, in a thread",
    "web.accept": "from a decoded conversation to its commit",
    "web.encode": "encoding a large log, in a thread",
    "web.metrics": "writing the metrics, in a thread",
    "web.answer": "sending a part of an answer to a client",
    # the database: a wait for a connection and one unit of work on it
    "db.accept": "storing one batch of conversations",
    "db.read": "reading what one reader asked for",
    "db.list": "reading a page of conversations",
    "db.log": "reading one log",
    "db.watch": "looking for jobs that ended in other processes",
    "db.lease": "leasing jobs, or looking for suspects",
    "db.renew": "renewing all leases of this process",
    "db.part": "storing parts",
    "db.settle": "settling jobs",
    "db.fail": "failing or burying a job",
    "db.park": "parking a job",
    "db.release": "giving jobs back",
    "db.retry": "reviving a dead letter",
    "db.rescue": "rescuing leases that ended, and burying what is given up",
    "db.sample": "counting jobs for the metrics",
    "db.books": "comparing the tables with the books",
    "db.audit": "comparing days with the books, and the tables with each other",
    "db.alerts": "seeing whether the database answers, and whether this process tells of what all share",
    "db.vitals": "reading what the alerts of all processes are made of",
    "db.acknowledge": "noting that somebody has reviewed a dead letter",
    "db.canary": "erasing canaries that came through",
    "db.ping": "seeing whether the database answers",
    "db.enter": "signing this process in",
    "db.leave": "signing this process out",
    "db.signed_in": "reading which processes are at work",
    "db.explain": "reading why a conversation stands as it does",
    "db.keys": "reading or changing the keys of clients",
    "db.open": "making the pool; no connection is opened by that",
    "db.close": "closing the pool or a line",
    "db.inspect": "reading the server's settings",
    "db.schema": "reading the schema's version",
    "db.migrate": "bringing the schema up to date, behind whoever else does so",
    # the language model and the memory service
    "llm.questions": "one attempt at a conversation's questions",
    "llm.emotion": "one attempt at a conversation's emotion",
    "llm.hold": "leaving the model alone for as long as it asked",
    "llm.bulkhead": "a free place among the calls of the model",
    "llm.ping": "seeing whether the model's server answers",
    "llm.check": "what `convo check` asks the model's server",
    "memory.extract": "one attempt at a conversation's memories",
    "memory.hold": "leaving the memory service alone for as long as it asked",
    "memory.bulkhead": "a free place among the calls of the memory service",
    "memory.ping": "seeing whether the memory service answers",
    "memory.check": "what `convo check` asks the memory service",
    # whoever is on call
    "alerts.deliver": "one attempt to deliver a message to a sink",
    "alerts.message": "all attempts at one message",
    # a canary
    "canary.accept": "the receipt of a canary",
    "canary.return": "the whole way of a canary, from its receipt to its score",
    # a job
    "analysis.job": "one analysis as a whole, with all retries of its calls",
    "analysis.local": "the embedded analyst on a long text, in a thread",
    "analysis.decode": "unpacking a long log, in a thread",
    "job.part": "from a found part to its commit, with those that others found",
    "job.ending": "the one ending of a job, under its shield",
    # the embedded PostgreSQL
    "embedded.version": "asking PostgreSQL's programs for their version",
    "embedded.copy": "copying the programs to where their user can run them",
    "embedded.chown": "handing a data folder over to its user",
    "embedded.initdb": "making a data folder",
    "embedded.postgres": "making the database in a new data folder",
    "embedded.start": "the server's start, with its recovery",
    "embedded.stop": "the server's stop in order",
    "embedded.stop_at_once": "the server's stop at once",
    "embedded.look": "looking for processes that serve a data folder",
    "embedded.orphan": "an earlier start's server to end in order",
    "embedded.orphan_at_once": "an earlier start's server to end at once",
    "embedded.measure": "adding up the size of a data folder",
    "embedded.trim": "cutting the server's log back",
    # backup and restore
    "backup.pg_dump": "writing the copy",
    "backup.sync": "bringing the copy to the disk",
    "backup.restore": "putting the database back",
    "backup.kill": "the end of the programs after a restore",
}
