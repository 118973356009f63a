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


def test_a_setting_of_convos_own_comes_before_the_variable_of_one_signal() -> None:
    given = {
        **URL,
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t/v1/traces",
        "OTEL_EXPORTER_OTLP_LOGS_HEADERS": "a=b",
    }
    otel = config.load_settings(None, given).otel
    assert (otel.traces_endpoint, otel.logs_headers.reveal()) == ("http://t/v1/traces", "a=b")
    own = {"CONVO_OTEL__ENDPOINT": "http://mine", "CONVO_OTEL__HEADERS": "c=d"}
    otel = config.load_settings(None, given | own).otel
    assert (otel.traces_endpoint, otel.logs_headers.reveal()) == ("", "")


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "2500"}, "attempt_seconds", 2.5),
        ({"OTEL_EXPORTER_OTLP_COMPRESSION": "GZIP"}, "compression", "gzip"),
        ({"OTEL_EXPORTER_OTLP_CERTIFICATE": "/ca.pem"}, "ca_file", "/ca.pem"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "7"}, "spans_max", 7),
        ({"OTEL_BLRP_MAX_QUEUE_SIZE": "8"}, "records_max", 8),
        ({"OTEL_LOGS_EXPORTER": "otlp"}, "sends_logs", True),
        ({"OTEL_LOGS_EXPORTER": "none"}, "sends_logs", False),
        ({"OTEL_TRACES_EXPORTER": "none"}, "records", False),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, "records", False),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "records", True),
        ({"OTEL_PROPAGATORS": "tracecontext,baggage"}, "records", True),
        # The same for one signal as for all.
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "10", "OTEL_EXPORTER_OTLP_LOGS_TIMEOUT": "10"}, "attempt_seconds", 0.01),
    ],
)
def test_the_standards_other_variables_are_obeyed(given: dict[str, str], key: str, value: object) -> None:
    assert getattr(config.load_settings(None, URL | given).otel, key) == value


def test_one_signal_alone_may_have_an_address() -> None:
    otel = config.load_settings(None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t/v1/traces"}).otel
    assert (otel.records, otel.sends_logs) == (True, False)
    given = {"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://l/v1/logs", "OTEL_LOGS_EXPORTER": "otlp"}
    otel = config.load_settings(None, given).otel
    assert (otel.records, otel.sends_logs) == (False, True)


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
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "protobuf over HTTP alone"),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}, "OTLP_TRACES_PROTOCOL=http/json: convo sends OTLP as"),
        ({"OTEL_EXPORTER_OTLP_CLIENT_KEY": "/key"}, "no certificate of its own"),
        ({"OTEL_EXPORTER_OTLP_LOGS_TIMEOUT": "10"}, "set OTEL_EXPORTER_OTLP_TIMEOUT in its place"),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "5s"}, "no number of milliseconds"),
        ({"OTEL_EXPORTER_OTLP_COMPRESSION": "zstd"}, "one of gzip, none"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "one of otlp, none"),
        ({"OTEL_PROPAGATORS": "b3"}, "add tracecontext"),
        ({"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "c:4318"}, "otel.logs_endpoint = 'c:4318'"),
        ({"OTEL_EXPORTER_OTLP_LOGS_HEADERS": "secret"}, "CONVO_OTEL__LOGS_HEADERS: its value is no list"),
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


@pytest.mark.parametrize(
    "given", [{}, {**URL, "OTEL_SDK_DISABLED": "true"}], ids=["without an address", "switched off"]
)
def test_what_is_there_for_others_is_no_mistake_where_convo_records_nothing(given: dict[str, str]) -> None:
    others = {
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_TRACES_EXPORTER": "zipkin",
        "OTEL_TRACES_SAMPLER": "jaeger_remote",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "zstd",
        "OTEL_PROPAGATORS": "b3",
    }
    assert not config.load_settings(None, others | given).otel.enabled


def test_where_convos_own_address_counts_the_sampler_must_be_known() -> None:
    given = {"CONVO_OTEL__ENDPOINT": "http://c", "OTEL_TRACES_SAMPLER": "jaeger_remote"}
    with pytest.raises(ConfigError, match="jaeger_remote"):
        config.load_settings(None, given)


def test_pairs_are_percent_decoded() -> None:
    assert read_pairs(" a = b%2Cc , d=e=f,") == {"a": "b,c", "d": "e=f"}
    assert read_pairs("") == {}
    assert read_pairs("a") is None
