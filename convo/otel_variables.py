"""Reads the variables that OpenTelemetry's standard names (``OTEL_…``) as settings of ``[otel]``; pure.

A setting of convo's own (``CONVO_OTEL__…``) comes before them. As the standard has it, an empty variable is not set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote

from convo.errors import ConfigError

_PLAIN = {
    "OTEL_EXPORTER_OTLP_ENDPOINT": "endpoint",
    "OTEL_EXPORTER_OTLP_HEADERS": "headers",
    "OTEL_SERVICE_NAME": "service_name",
    "OTEL_RESOURCE_ATTRIBUTES": "resource_attributes",
    "OTEL_SDK_DISABLED": "disabled",
}
_PROTOCOL, _SAMPLER, _SHARE = "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
# The names of the standard's samplers, with the share that each takes; None where _SHARE has it.
_SAMPLERS: Mapping[str, str | None] = {
    "": None,
    "traceidratio": None,
    "parentbased_traceidratio": None,
    "always_on": "1",
    "parentbased_always_on": "1",
    "always_off": "0",
    "parentbased_always_off": "0",
}
_PAIR = re.compile(r"\s*([^\s=,;]+)\s*=\s*([^,;]*?)\s*")


def otel_settings(environ: Mapping[str, str]) -> dict[tuple[str, str], tuple[str, str]]:
    """Return the settings that these variables are, by section and key: each with its text and its variable's name.

    Raises:
        ConfigError: they ask for what convo does not have.
    """
    given = {name: text for name in (*_PLAIN, _PROTOCOL, _SAMPLER, _SHARE) if (text := environ.get(name, "").strip())}
    if "OTEL_EXPORTER_OTLP_ENDPOINT" in given and given.get(_PROTOCOL, "").lower() == "grpc":
        raise ConfigError(
            f"{_PROTOCOL}=grpc: convo sends OTLP over HTTP alone: set it to http/protobuf, and"
            " OTEL_EXPORTER_OTLP_ENDPOINT to the collector's HTTP address (its port is 4318, unless it was changed)"
        )
    found = {("otel", key): (given[name], name) for name, key in _PLAIN.items() if name in given}
    sampler = given.get(_SAMPLER, "").lower()
    if sampler not in _SAMPLERS:
        known = ", ".join(name for name in _SAMPLERS if name)
        raise ConfigError(f"{_SAMPLER}={sampler!r} is not supported: use one of {known}, or unset it")
    share = _SAMPLERS[sampler]
    if share is not None:
        found["otel", "sample"] = (share, _SAMPLER)
    elif _SHARE in given:
        found["otel", "sample"] = (given[_SHARE], _SHARE)
    return found


def read_pairs(text: str) -> dict[str, str] | None:
    """Read ``name=value,name=value``, where values are percent-encoded; None where it is something else."""
    pairs = [one for one in text.split(",") if one.strip()]
    found = [_PAIR.fullmatch(one) for one in pairs]
    return None if None in found else {unquote(one[1]): unquote(one[2]) for one in found if one is not None}
