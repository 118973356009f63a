from __future__ import annotations

import pytest

from convo import config
from convo.errors import ConfigError
from convo.otel_variables import read_pairs

URL = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}


def test_the_standards_variables_are_settings() -> None:
    given = {
        **URL,
        "OTEL_EXPORTER_OTLP_HEADERS": "api-key=x",
        "OTEL_SERVICE_NAME": "robot",
        "OTEL_RESOURCE_ATTRIBUTES": "a=b",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.5",
    }
    otel = config.load_settings(None, given).otel
    assert (otel.endpoint, otel.headers.reveal(), otel.service_name) == ("http://c:4318", "api-key=x", "robot")
    assert (otel.resource_attributes, otel.sample, otel.enabled) == ("a=b", 0.5, True)


def test_a_setting_of_convos_own_comes_first() -> None:
    otel = config.load_settings(None, {**URL, "CONVO_OTEL__ENDPOINT": "http://mine"}).otel
    assert otel.endpoint == "http://mine"


@pytest.mark.parametrize("text", ["true", "TRUE"])
def test_the_standards_switch_turns_all_off(text: str) -> None:
    assert not config.load_settings(None, {**URL, "OTEL_SDK_DISABLED": text}).otel.enabled


def test_an_empty_variable_is_not_set() -> None:
    assert not config.load_settings(None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "", "OTEL_SDK_DISABLED": ""}).otel.enabled


@pytest.mark.parametrize(
    ("sampler", "share"), [("always_on", 1.0), ("parentbased_always_off", 0.0), ("traceidratio", 0.2)]
)
def test_the_standards_samplers_are_shares(sampler: str, share: float) -> None:
    given = {**URL, "OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": "0.2"}
    assert config.load_settings(None, given).otel.sample == share


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTLP over HTTP alone"),
        ({"OTEL_TRACES_SAMPLER": "jaeger_remote"}, "jaeger_remote"),
        ({"OTEL_TRACES_SAMPLER_ARG": "2"}, "OTEL_TRACES_SAMPLER_ARG"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "otel.endpoint = 'collector:4318'"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://user:secret@c"}, "without a login"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "secret"}, "CONVO_OTEL__HEADERS: its value is no list"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "a=%0d%0ax"}, "CONVO_OTEL__HEADERS: its value is no list"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a"}, "no list of attributes"),
    ],
)
def test_what_convo_does_not_have_is_refused_with_what_to_do(given: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        config.load_settings(None, URL | given)
    assert "%0d" not in str(refused.value)
    assert "secret" not in str(refused.value)


def test_grpc_for_others_is_no_mistake_where_convo_records_nothing() -> None:
    assert not config.load_settings(None, {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}).otel.enabled


def test_pairs_are_percent_decoded() -> None:
    assert read_pairs(" a = b%2Cc , d=e=f,") == {"a": "b,c", "d": "e=f"}
    assert read_pairs("") == {}
    assert read_pairs("a") is None
