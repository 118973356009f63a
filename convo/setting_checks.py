"""Checks that the settings fit each other and the world: what the types of single settings cannot say."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from operator import attrgetter
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from convo.analysis.declared import declarations
from convo.dependencies import DEPENDENCIES
from convo.errors import ConfigError
from convo.host_names import listed_name, origin_host
from convo.otel_variables import read_pairs
from convo.setting_values import variable
from convo.settings import (
    AlertsSettings,
    LogsSettings,
    OncallSettings,
    OtelSettings,
    RabbitmqSettings,
    Settings,
    dependency_sections,
    host_settings,
    llm_servers,
    proxies,
    shared_origins,
    used_dependencies,
)

_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+:[\x20-\x7e]*")
# The form of a secret in the Standard Webhooks scheme.
_WEBHOOK_SECRET = re.compile(r"whsec_(?=.{32,88}\Z)(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


def check_meaning(settings: Settings) -> None:
    """Check each value in the light of the others.

    Raises:
        ConfigError: the text names the setting, its value unless it is secret, and what to do.
    """
    declarations(settings)
    used = used_dependencies(settings)
    for name, section in dependency_sections(settings).items():
        if section.api_key and name not in used:
            switch = DEPENDENCIES[name].switch
            raise ConfigError(
                f"{name}.api_key is set but {name}.{switch} is empty: set it ({variable(name, switch)}), or unset the"
                " key to let the embedded analyst do the work"
            )
    _check_models(settings)
    _check_database(settings)
    if not (settings.auth.keys or settings.auth.open_to_network or _is_loopback(settings.server.host)):
        raise ConfigError(
            f"server.host = {settings.server.host!r} is open to the network and auth.keys is off: every"
            " client could write and read. Turn keys on (CONVO_AUTH__KEYS=true, then `scripts/convo key new NAME`), or"
            " confirm that a gateway in front of convo checks its clients (CONVO_AUTH__OPEN_TO_NETWORK=true)"
        )
    _check_operations(settings)
    for smaller, larger, why in (
        ("web.body_bytes_max", "web.raw_bytes_max", "no body without recordings could be as long as its limit"),
        ("web.raw_bytes_max", "intake.bytes_in_flight_max", "a body within its limit would be refused under any load"),
    ):
        few, many = (attrgetter(name)(settings) for name in (smaller, larger))
        if few > many:
            raise ConfigError(f"{smaller} = {few} is above {larger} = {many}: {why}")
    if bool(settings.server.certfile) != bool(settings.server.keyfile):
        raise ConfigError("only one of server.certfile and server.keyfile is set: set both, or neither")
    for address in proxies(settings.server):
        try:
            ipaddress.ip_network(address, strict=False)
        except ValueError as error:
            raise ConfigError(
                f"server.trusted_proxies = {address!r} is neither an address nor a network: {error}"
            ) from None
    _check_callers(settings)
    _check_public_url(settings.server.public_url)
    _check_sinks(settings.alerts)
    _check_mail(settings)
    _check_oncall(settings.oncall)
    _check_rabbitmq(settings.rabbitmq)
    _check_logs(settings.logs)
    _check_otel(settings.otel)


def _check_database(settings: Settings) -> None:
    url = settings.database.url.reveal()
    try:
        parts = urlsplit(url)
    except ValueError:
        # Neither its value nor the reason, in which Python repeats a part of it: either may hold a password. Some
        # Pythons, and the driver with them, take an address in brackets only as the first host.
        raise ConfigError(
            f"database.url: its value is no URL; {_DATABASE_URL_WANTED}; an IPv6 address after other hosts stands as in"
            " ?host=one,[::1]&port=5432,5432"
        ) from None
    if url and parts.scheme not in ("postgresql", "postgres"):
        raise ConfigError(f"database.url: its value does not begin with postgresql://; {_DATABASE_URL_WANTED}")
    ports = re.findall(r":([^:,\]]*)(?=,|\Z)", parts.netloc.rpartition("@")[2])
    if not all(re.fullmatch(r"[0-9]{0,5}", port) for port in ports):
        raise ConfigError(
            f"database.url: its port is no number; {_DATABASE_URL_WANTED}, and / @ : in a password as %2F %40 %3A"
        )


_DATABASE_URL_WANTED = "write postgresql://USER@HOST:5432/DATABASE, with the password in CONVO_DATABASE__URL only"


def _check_operations(settings: Settings) -> None:
    server = settings.server
    if not server.operations_port:
        return
    if server.operations_port == server.port:
        raise ConfigError(
            f"server.operations_port = {server.port} is also server.port: the operations need no key and must"
            " have a port of their own; choose another, or 0 for none"
        )
    # auth.keys is no protection here, because nothing at this address needs a key.
    if not (settings.auth.open_to_network or _is_loopback(server.operations_host)):
        raise ConfigError(
            f"server.operations_host = {server.operations_host!r} is open to the network, and the operations need no"
            " key there: everybody could read /metrics and /debug/tasks. Choose a loopback address, or confirm that"
            " only those meant to can reach it (CONVO_AUTH__OPEN_TO_NETWORK=true)"
        )


def _check_callers(settings: Settings) -> None:
    for name in host_settings(settings.server):
        if name != "*" and not listed_name(name):
            raise ConfigError(
                f"server.hosts = {name!r} is neither a name nor an address: write it as in convo.example.com, without a"
                " scheme and a port"
            )
    for origin in shared_origins(settings.server):
        if origin == "*" and settings.auth.keys:
            raise ConfigError(
                "server.cors_origins = '*' would let the pages of all sites use a key: name the origins of your pages"
            )
        if origin != "*" and not origin_host(origin):
            raise ConfigError(
                f"server.cors_origins = {origin!r} is no origin: write scheme, name and port alone, as in"
                " https://admin.example.com"
            )


def _check_models(settings: Settings) -> None:
    llm = settings.llm
    if llm.fallbacks and not llm.model:
        raise ConfigError(
            f"llm.fallbacks names {', '.join(llm.fallbacks)}, but llm.model is empty: set it"
            f" ({variable('llm', 'model')}), because a fallback is only asked when the first model fails"
        )
    for name, one in llm.fallbacks.items():
        if not one.model and not one.base_url:
            raise ConfigError(
                f"llm.fallbacks.{name} has neither a model nor a base_url, so it would be the first server again: set"
                f" one, as in {variable('llm', 'fallbacks', name, 'model')}"
            )
    servers = llm_servers(llm)
    if llm.daily_budget and not any(one.priced for one in servers.values()):
        raise ConfigError(
            f"llm.daily_budget = {llm.daily_budget:g}, but nothing is priced, so nothing would ever be spent: set"
            " llm.price_in and llm.price_out, or those of a fallback, or set llm.daily_budget to 0"
        )
    for server, section in servers.items():
        _check_headers(server.replace("llm.", "llm.fallbacks."), section.headers)


def _check_headers(where: str, headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) or not re.fullmatch(r"[\x20-\x7e]*", value):
            raise ConfigError(f"{where}.headers holds {name!r}, whose name or value no header can have")


def _check_sinks(alerts: AlertsSettings) -> None:
    for name in ("webhook_url", "slack_url", "google_chat_url"):
        url = getattr(alerts, name).reveal()
        if url and not re.fullmatch(r"https?://[\x21-\x7e]+", url):
            raise ConfigError(f"{variable('alerts', name)}: its value is no http:// or https:// address; correct it")
    if not re.fullmatch(r"https?://[\x21-\x7e]+", alerts.pagerduty_url):
        raise ConfigError(
            f"alerts.pagerduty_url = {alerts.pagerduty_url!r} is no http:// or https:// address; leave it out for"
            " PagerDuty's own, or name https://events.eu.pagerduty.com/v2/enqueue"
        )
    if bool(alerts.webhook_url) != bool(alerts.webhook_secret):
        raise ConfigError(
            f"only one of {variable('alerts', 'webhook_url')} and {variable('alerts', 'webhook_secret')} is set:"
            " set both, because each notification is signed"
        )
    secret = alerts.webhook_secret.reveal()
    if secret and not _WEBHOOK_SECRET.fullmatch(secret):
        raise ConfigError(
            f"{variable('alerts', 'webhook_secret')}: its value is not whsec_ and the base64 of 24 to 64 bytes; make"
            " one with `echo whsec_$(head -c 32 /dev/urandom | base64)`"
        )


def _check_public_url(url: str) -> None:
    if url and not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+(/[!-~]*[!-.0-~])?", url):
        raise ConfigError(
            f"server.public_url = {url!r} is no http:// or https:// address, or ends with a slash: write it as in"
            " https://convo.example.com"
        )


def _check_mail(settings: Settings) -> None:
    smtp, people = settings.smtp, settings.oncall.people
    wanted = [name for name, person in people.items() if person.email]
    where = f"oncall.people.{wanted[0]}.email" if wanted else "alerts.email_to"
    if (wanted or settings.alerts.email_to) and not smtp.host:
        raise ConfigError(f"{where} is set, but smtp.host is empty: name the mail server there, or remove the address")
    if smtp.host and not smtp.sender:
        raise ConfigError(
            "smtp.host is set, but smtp.sender is empty: name the address that e-mails are from, such as"
            " convo@example.com"
        )
    if bool(smtp.user) != bool(smtp.password):
        raise ConfigError(
            f"only one of smtp.user and {variable('smtp', 'password')} is set: set both, or neither where the server"
            " takes e-mails without a login"
        )
    if smtp.user and smtp.security == "none" and not _is_loopback(smtp.host):
        raise ConfigError(
            "smtp.security = none would send the password of smtp.user readably over the network: set it to starttls"
            " or tls, or empty smtp.user"
        )


def _check_oncall(oncall: OncallSettings) -> None:
    for name, person in oncall.people.items():
        if not (person.email or person.pagerduty_key or person.slack_url):
            raise ConfigError(
                f"oncall.people.{name} can be notified in no way: set its email, or"
                f" {variable('oncall', 'people', name, 'pagerduty_key')} or"
                f" {variable('oncall', 'people', name, 'slack_url')}"
            )
        url = person.slack_url.reveal()
        if url and not re.fullmatch(r"https?://[\x21-\x7e]+", url):
            raise ConfigError(
                f"{variable('oncall', 'people', name, 'slack_url')}: its value is no http:// or https:// address;"
                " correct it"
            )
    named = (
        *(("rotation", name) for name in oncall.rotation),
        *(("overrides", one.person) for one in oncall.overrides),
    )
    for where, name in named:
        if name not in oncall.people:
            known = ", ".join(oncall.people) or "none"
            raise ConfigError(f"oncall.{where} names {name!r}, who is not in oncall.people: known are {known}")
    try:
        zone = ZoneInfo(oncall.timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigError(
            f"oncall.timezone = {oncall.timezone!r} is no time zone that this machine knows: write it as in"
            " Europe/Berlin, and install the package tzdata where the system has none"
        ) from None
    for one in oncall.overrides:
        begin, end = (at if at.tzinfo else at.replace(tzinfo=zone) for at in (one.from_, one.until))
        if begin >= end:
            raise ConfigError(
                f"oncall.overrides has one of {one.person} that ends at {one.until.isoformat()}, not after its"
                f" beginning at {one.from_.isoformat()}: exchange the two"
            )


def _check_rabbitmq(rabbitmq: RabbitmqSettings) -> None:
    url = rabbitmq.url.reveal()
    if url and not re.fullmatch(r"amqps?://[\x21-\x7e]+", url):
        raise ConfigError(
            f"{variable('rabbitmq', 'url')}: its value is no amqp:// or amqps:// address; write amqp://USER:PASSWORD@HOST/,"
            " with / @ : in a password as %2F %40 %3A"
        )
    if rabbitmq.intake_queue and not url:
        raise ConfigError(
            f"rabbitmq.intake_queue = {rabbitmq.intake_queue!r}, but there is no broker to take it from: set"
            f" {variable('rabbitmq', 'url')}, or empty rabbitmq.intake_queue"
        )


def _check_logs(logs: LogsSettings) -> None:
    if logs.in_objects and not logs.bucket:
        raise ConfigError(
            "logs.store = s3, but there is no bucket: set logs.bucket to one that exists and is convo's alone, or"
            " logs.store = postgres"
        )
    if logs.endpoint and not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+(/[!-~]*)?", logs.endpoint):
        raise ConfigError(
            f"logs.endpoint = {logs.endpoint!r} is no http:// or https:// address; leave it empty for Amazon's own"
        )
    if bool(logs.access_key_id) != bool(logs.secret_access_key):
        raise ConfigError(
            f"only one of {variable('logs', 'access_key_id')} and {variable('logs', 'secret_access_key')} is set: set"
            " both, or neither where the machine has a role or the AWS_* variables are set"
        )


def _check_otel(otel: OtelSettings) -> None:
    whole = "write the whole address that they are posted to, as in http://127.0.0.1:4318"
    for key, address, wanted in (
        ("endpoint", otel.endpoint, "write the collector's base address, as in http://127.0.0.1:4318"),
        ("traces_endpoint", otel.traces_endpoint, f"{whole}/v1/traces"),
        ("logs_endpoint", otel.logs_endpoint, f"{whole}/v1/logs"),
    ):
        if address and not re.fullmatch(r"https?://[^\s/?#@]+(/[!-~]*)?", address):
            # A login is a secret.
            value = "its value" if "@" in address else repr(address)
            raise ConfigError(
                f"otel.{key} = {value} is no http:// or https:// address: {wanted}, without a login (that goes into"
                " the headers)"
            )
    for key, given in (
        ("headers", otel.headers),
        ("traces_headers", otel.traces_headers),
        ("logs_headers", otel.logs_headers),
    ):
        headers = read_pairs(given.reveal())
        if headers is None or not all(_HEADER.fullmatch(f"{name}:{value}") for name, value in headers.items()):
            raise ConfigError(
                f"{variable('otel', key)}: its value is no list of headers: write name=value,name=value, with"
                " , ; = % and spaces in a value percent-encoded"
            )
    if read_pairs(otel.resource_attributes) is None:
        raise ConfigError(
            f"otel.resource_attributes = {otel.resource_attributes!r} is no list of attributes: write name=value,"
            "name=value, as in deployment.environment.name=production"
        )


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        # Any other name may mean any address, 127.example.com as well.
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
