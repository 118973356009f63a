"""Reads the variables that OpenTelemetry's standard names (``OTEL_…``) as settings of ``[otel]``; pure.

A setting of convo's own (``CONVO_OTEL__…``) comes before them. As the standard has it, an empty variable is not set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote

from convo.errors import ConfigError

_ENDPOINT, _DISABLED = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SDK_DISABLED"
_TRACES_ENDPOINT, _LOGS_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"
_PLAIN = {
    _ENDPOINT: "endpoint",
    _TRACES_ENDPOINT: "traces_endpoint",
    _LOGS_ENDPOINT: "logs_endpoint",
    "OTEL_EXPORTER_OTLP_HEADERS": "headers",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "traces_headers",
    "OTEL_EXPORTER_OTLP_LOGS_HEADERS": "logs_headers",
    "OTEL_EXPORTER_OTLP_CERTIFICATE": "ca_file",
    "OTEL_SERVICE_NAME": "service_name",
    "OTEL_RESOURCE_ATTRIBUTES": "resource_attributes",
    "OTEL_BSP_MAX_QUEUE_SIZE": "spans_max",
    "OTEL_BLRP_MAX_QUEUE_SIZE": "records_max",
    _DISABLED: "disabled",
}
_OWN_ADDRESSES = tuple(f"CONVO_OTEL__{key}" for key in ("ENDPOINT", "TRACES_ENDPOINT", "LOGS_ENDPOINT"))
# A setting of convo's own for all signals comes also before the standard's variable for one of them.
_OF_SIGNALS = {"endpoint": ("traces_endpoint", "logs_endpoint"), "headers": ("traces_headers", "logs_headers")}
_TIMEOUT, _COMPRESSION = "OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_COMPRESSION"
_SAMPLER, _SHARE = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
_PROTOCOLS = tuple(f"OTEL_EXPORTER_OTLP_{signal}PROTOCOL" for signal in ("", "TRACES_", "LOGS_"))
_EXPORTERS = {"OTEL_TRACES_EXPORTER": "traces", "OTEL_LOGS_EXPORTER": "logs"}
_PROPAGATORS, _PROPAGATOR = "OTEL_PROPAGATORS", "tracecontext"
# The standard has one of each for all signals, and one for each of them; convo has one alone.
_ONE_FOR_ALL = tuple(
    f"OTEL_EXPORTER_OTLP_{signal}_{what}"
    for signal in ("TRACES", "LOGS")
    for what in ("TIMEOUT", "COMPRESSION", "CERTIFICATE")
)
_NOT_SPOKEN = tuple(
    f"OTEL_EXPORTER_OTLP_{signal}CLIENT_{what}"
    for signal in ("", "TRACES_", "LOGS_")
    for what in ("CERTIFICATE", "KEY")
)
# The names of the standard's samplers, with the share that each takes; None where _SHARE has it.
_SAMPLERS: Mapping[str, str | None] = {
    "traceidratio": None,
    "parentbased_traceidratio": None,
    "always_on": "1",
    "parentbased_always_on": "1",
    "parentbased_always_off": "0",
}
_ALWAYS_OFF = "always_off"
_KNOWN: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(_EXPORTERS, ("otlp", "none")),
    _SAMPLER: (*_SAMPLERS, _ALWAYS_OFF),
    _COMPRESSION: ("gzip", "none"),
}
_MILLISECONDS = re.compile(r"[0-9]{1,9}")
_PAIR = re.compile(r"\s*([^\s=,;]+)\s*=\s*([^,;]*?)\s*")

Found = dict[tuple[str, str], tuple[str, str]]


def otel_settings(environ: Mapping[str, str]) -> Found:
    """Return the settings that these variables are, by section and key: each with its text and its variable's name.

    Where neither they nor convo's own have an address, or they switch all off, what convo does not have is no mistake:
    it is there for another program.

    Raises:
        ConfigError: they ask for what convo does not have.
    """
    given = {
        name: stripped for name, text in environ.items() if name.startswith("OTEL_") and (stripped := text.strip())
    }
    found: Found = {("otel", key): (given[name], name) for name, key in _PLAIN.items() if name in given}
    for key, ones in _OF_SIGNALS.items():
        if environ.get(f"CONVO_OTEL__{key.upper()}"):
            for one in ones:
                found.pop(("otel", one), None)
    addresses = (_ENDPOINT, _TRACES_ENDPOINT, _LOGS_ENDPOINT)
    on = given.get(_DISABLED, "").lower() != "true"
    if on and any(name in given for name in addresses):
        _check_spoken(given)
    if on and any(environ.get(name) for name in (*addresses, *_OWN_ADDRESSES)):
        _check_values(given)
    return found | _exporters(given) | _sampler(given) | _attempts(given)


def _check_spoken(given: Mapping[str, str]) -> None:
    """Refuse what says that something is sent, or passed on, in a way that convo does not know."""
    for name in _PROTOCOLS:
        if given.get(name, "http/protobuf").lower() != "http/protobuf":
            raise ConfigError(
                f"{name}={given[name]}: convo sends OTLP as protobuf over HTTP alone: set it to http/protobuf, and"
                f" {_ENDPOINT} to the collector's HTTP address (its port is 4318, unless it was changed)"
            )
    for name in _NOT_SPOKEN:
        if name in given:
            raise ConfigError(
                f"{name}: convo shows the collector no certificate of its own: unset it, and let headers"
                " (OTEL_EXPORTER_OTLP_HEADERS) say who it is"
            )
    for name in _ONE_FOR_ALL:
        general = name.replace("_TRACES_", "_").replace("_LOGS_", "_")
        if name in given and given[name] != given.get(general):
            raise ConfigError(f"{name}: convo has one for all that it sends: set {general} in its place")
    known = [one.strip().lower() for one in given.get(_PROPAGATORS, _PROPAGATOR).split(",")]
    if _PROPAGATOR not in known:
        raise ConfigError(
            f"{_PROPAGATORS}={given[_PROPAGATORS]}: convo reads and passes on W3C trace context alone: add"
            f" {_PROPAGATOR}, or unset it"
        )


def _check_values(given: Mapping[str, str]) -> None:
    """Refuse a value that convo does not know."""
    for name, known in _KNOWN.items():
        if name in given and given[name].lower() not in known:
            raise ConfigError(f"{name}={given[name]!r} is not supported: use one of {', '.join(known)}, or unset it")
    if _TIMEOUT in given and not _MILLISECONDS.fullmatch(given[_TIMEOUT]):
        raise ConfigError(f"{_TIMEOUT}={given[_TIMEOUT]!r} is no number of milliseconds: write 5000 for 5 s")


def _exporters(given: Mapping[str, str]) -> Found:
    texts = {"otlp": "true", "none": "false"}
    named = {name: (key, texts.get(given.get(name, "").lower())) for name, key in _EXPORTERS.items()}
    return {("otel", key): (text, name) for name, (key, text) in named.items() if text is not None}


def _sampler(given: Mapping[str, str]) -> Found:
    sampler = given.get(_SAMPLER, "").lower()
    if sampler == _ALWAYS_OFF:
        # Nothing is recorded, what a caller records neither.
        return {("otel", "traces"): ("false", _SAMPLER)}
    share = _SAMPLERS.get(sampler)
    if share is not None:
        return {("otel", "sample"): (share, _SAMPLER)}
    return {("otel", "sample"): (given[_SHARE], _SHARE)} if _SHARE in given else {}


def _attempts(given: Mapping[str, str]) -> Found:
    found: Found = {}
    if _MILLISECONDS.fullmatch(given.get(_TIMEOUT, "")):
        found["otel", "attempt_seconds"] = (str(int(given[_TIMEOUT]) / 1000), _TIMEOUT)
    if (compression := given.get(_COMPRESSION, "").lower()) in _KNOWN[_COMPRESSION]:
        found["otel", "compression"] = (compression, _COMPRESSION)
    return found


def read_pairs(text: str) -> dict[str, str] | None:
    """Read ``name=value,name=value``, where values are percent-encoded; None where it is something else."""
    pairs = [one for one in text.split(",") if one.strip()]
    found = [_PAIR.fullmatch(one) for one in pairs]
    return None if None in found else {unquote(one[1]): unquote(one[2]) for one in found if one is not None}
