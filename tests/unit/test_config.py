from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from convo import config
from convo.config import DEFAULT_FILE, client_address, load_settings
from convo.errors import ConfigError
from convo.settings import Bytes, Seconds, SecondsOrNone, Secret, Section, ServerSettings, Settings

SECRETS = {
    *(("llm", "api_key"), ("memory", "api_key")),
    *(("alerts", name) for name in ("webhook_url", "webhook_secret", "slack_url", "google_chat_url", "pagerduty_key")),
    ("smtp", "password"),
    ("rabbitmq", "url"),
    *(("logs", name) for name in ("access_key_id", "secret_access_key")),
    *(("otel", name) for name in ("headers", "traces_headers", "logs_headers")),
}
"""They come from the environment only: the file has no place for them."""
SECTIONS: dict[str, Any] = {
    field.name: field.type for field in msgspec.structs.fields(Settings) if isinstance(field.type, type)
}
IN_FILE: dict[str, dict[str, Any]] = tomllib.loads(DEFAULT_FILE.read_text("utf-8"))
KEYS = [
    (section, field.name)
    for section, kind in SECTIONS.items()
    for field in msgspec.structs.fields(kind)
    if (section, field.name) not in SECRETS
]


def default(section: str, key: str) -> Any:
    value = getattr(getattr(Settings(), section), key)
    if isinstance(value, tuple):
        return list(value)
    return value.reveal() if isinstance(value, Secret) else value


def written(folder: Path, text: str) -> Path:
    file = folder / "config.toml"
    file.write_text(text, "utf-8")
    return file


# --- the file


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_every_key_stands_in_the_file_with_its_default(section: str, key: str) -> None:
    assert IN_FILE[section][key] == default(section, key)
    assert type(IN_FILE[section][key]) is type(default(section, key))


def test_the_file_has_no_key_that_is_none() -> None:
    assert {(section, key) for section, keys in IN_FILE.items() for key in keys} == set(KEYS)


def test_every_key_of_the_file_has_its_line_of_why() -> None:
    weights_of_one_kind = {"boring", "neutral", "happy", "sad", "angry"}
    for line in DEFAULT_FILE.read_text("utf-8").splitlines():
        key, mark, rest = line.partition(" = ")
        if mark and key not in weights_of_one_kind:
            assert re.search(r"\s# \S", rest), line


def test_durations_and_sizes_say_so_in_their_names() -> None:
    kinds = {"Seconds": Seconds, "SecondsOrNone": SecondsOrNone}
    for section, kind in SECTIONS.items():
        for field in msgspec.structs.fields(kind):
            if field.type in kinds.values():
                assert field.name.endswith("_seconds"), f"{section}.{field.name}"
            if field.type == Bytes:
                assert "bytes" in field.name.split("_"), f"{section}.{field.name}"


def test_the_repositorys_file_loads_to_the_defaults_but_for_the_folder_beside_it() -> None:
    settings = load_settings(environ={})
    assert settings.server.data_dir == str(DEFAULT_FILE.parent / ".convo")
    server = msgspec.structs.replace(settings.server, data_dir=".convo")
    assert msgspec.structs.replace(settings, server=server) == Settings()


@pytest.fixture
def _installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As pip and uv install it: without the repository's file."""
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "none.toml")


@pytest.mark.usefixtures("_installed")
def test_without_any_file_the_defaults_hold_but_for_the_folder() -> None:
    settings = load_settings(None, {})
    server = msgspec.structs.replace(settings.server, data_dir=".convo")
    assert msgspec.structs.replace(settings, server=server) == Settings()


@pytest.mark.parametrize(
    ("platform", "environ", "folder"),
    [
        ("linux", {}, "/home/ann/.local/share/convo"),
        ("linux", {"XDG_DATA_HOME": "/data"}, "/data/convo"),
        ("linux", {"XDG_DATA_HOME": "relative"}, "/home/ann/.local/share/convo"),
        ("linux", {"XDG_DATA_HOME": ""}, "/home/ann/.local/share/convo"),
        ("darwin", {}, "/home/ann/Library/Application Support/convo"),
        ("linux", {"CONVO_SERVER__DATA_DIR": "mine"}, "mine"),
    ],
)
@pytest.mark.usefixtures("_installed")
def test_installed_it_keeps_its_data_in_the_platforms_folder(
    monkeypatch: pytest.MonkeyPatch, platform: str, environ: dict[str, str], folder: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert load_settings(None, {"HOME": "/home/ann", **environ}).server.data_dir == folder


@pytest.mark.usefixtures("_installed")
def test_installed_a_folder_that_is_given_is_taken(tmp_path: Path) -> None:
    home = {"HOME": "/home/ann"}
    assert load_settings(None, home, {("server", "data_dir"): "mine"}).server.data_dir == "mine"
    file = written(tmp_path, '[server]\ndata_dir = "mine"\n')
    assert load_settings(file, home).server.data_dir == str(tmp_path / "mine")
    assert load_settings(written(tmp_path, ""), home).server.data_dir == "/home/ann/.local/share/convo"


@pytest.mark.usefixtures("_installed")
def test_installed_without_a_home_in_the_environment_the_users_own_is_asked_for() -> None:
    assert Path(load_settings(None, {}).server.data_dir).is_absolute()


@pytest.mark.usefixtures("_installed")
def test_installed_a_user_without_any_home_keeps_the_current_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    assert load_settings(None, {}).server.data_dir == ".convo"


def test_from_a_checkout_the_folder_stays_where_it_was(tmp_path: Path) -> None:
    xdg = {"XDG_DATA_HOME": "/data", "HOME": "/home/ann"}
    assert load_settings(None, xdg).server.data_dir == str(DEFAULT_FILE.parent / ".convo")
    assert load_settings(written(tmp_path, ""), xdg).server.data_dir == ".convo"


def test_a_named_file_that_is_not_there_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path / "other.toml"))):
        load_settings(tmp_path / "other.toml", {})


@pytest.mark.parametrize("text", ["[server", "port = ", "[server]\nport = 1\nport = 2"])
def test_a_file_that_is_not_toml_is_an_error_with_its_path(tmp_path: Path, text: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError, match=re.escape(str(file))):
        load_settings(file, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[server]\nprot = 80", r"config\.toml: \$\.server\.prot: there is no such key; did you mean port\?"),
        ("[servr]\nport = 80", r"config\.toml: \$\.servr: there is no such key; did you mean server\?"),
        ("[jobs]\nxyzzy = 1", r"config\.toml: \$\.jobs\.xyzzy: there is no such key$"),
        ("[server]\nhost = 5", r"config\.toml: .*\$\.server\.host"),
        ('[server]\nport = "80"', r"server\.port = "),
        ("[server]\nport = 70000", r"server\.port = "),
        ("[server]\nport = -1", r"server\.port = "),
        ("[jobs]\nworkers = 1.5", r"jobs\.workers = "),
        ("[jobs]\nlease_seconds = 0", r"jobs\.lease_seconds = "),
        ("[jobs]\nlease_seconds = nan", r"jobs\.lease_seconds = "),
        ("[jobs]\nlease_seconds = inf", r"jobs\.lease_seconds = "),
        ('[memory]\ndialect = "mem1"', r"memory\.dialect = "),
        ("[database]\npool_max = 1", r"database\.pool_max = "),
        ("[database]\nurl = 5", r"\$\.database\.url"),
        ("[score]\nfriend_from = 500", r"friend_from .500..*acquaintance_from .500.*\$\.score"),
        ("server = 3", r"\$\.server.*; server is a section: write the line \[server\], and its keys below it"),
        ("port = 80", r"\$\.port: there is no such key; it belongs below \[server\] or \[smtp\]$"),
    ],
)
def test_a_misspelt_key_or_a_wrong_value_is_an_error_with_its_path(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_settings(written(tmp_path, text), {})


def test_a_relative_folder_in_a_file_is_taken_from_the_files_own(tmp_path: Path) -> None:
    assert load_settings(written(tmp_path, '[server]\ndata_dir = "here"'), {}).server.data_dir == str(tmp_path / "here")
    assert load_settings(written(tmp_path, '[server]\ndata_dir = "/there"'), {}).server.data_dir == "/there"


def test_a_relative_folder_from_elsewhere_is_taken_from_the_working_folder() -> None:
    assert load_settings(environ={"CONVO_SERVER__DATA_DIR": "here"}).server.data_dir == "here"


# --- the environment and the command line


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("CONVO_SERVER__PORT", "80", ("server", "port"), 80),
        ("CONVO_JOBS__LEASE_SECONDS", "45", ("jobs", "lease_seconds"), 45.0),
        ("CONVO_OBSERVE__ACCESS_LOG", "true", ("observe", "access_log"), True),
        ("CONVO_MEMORY__DIALECT", "mem0", ("memory", "dialect"), "mem0"),
        ("CONVO_SCORE__BORING", "-7", ("score", "boring"), -7),
        ("CONVO_LLM__MODEL", "7", ("llm", "model"), "7"),
    ],
)
def test_a_variable_wins_over_the_file_and_is_read_as_its_keys_own_type(
    tmp_path: Path, name: str, text: str, key: tuple[str, str], value: object
) -> None:
    file = written(tmp_path, "[server]\nport = 1\n[score]\nboring = -1")
    found = getattr(getattr(load_settings(file, {name: text}), key[0]), key[1])
    assert found == value
    assert type(found) is type(value)


def test_the_command_line_wins_over_both(tmp_path: Path) -> None:
    file = written(tmp_path, "[server]\nport = 1")
    assert load_settings(file, {"CONVO_SERVER__PORT": "2"}, {("server", "port"): "3"}).server.port == 3


def test_what_the_file_says_beside_it_still_holds(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, '[server]\nhost = "::1"'), {"CONVO_SERVER__PORT": "2"})
    assert (settings.server.host, settings.server.port) == ("::1", 2)


@pytest.mark.parametrize(
    "name", ["CONVO_SERVER__PROT", "CONVO_SEVER__PORT", "CONVO_PORT", "CONVO_", "CONVO___PORT", "CONVO_SERVER__"]
)
def test_an_unknown_variable_is_an_error_with_its_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: there is no such setting"):
        load_settings(environ={name: "1"})


def test_the_nearest_variable_is_named() -> None:
    with pytest.raises(ConfigError, match=r"did you mean CONVO_SERVER__PORT\?"):
        load_settings(environ={"CONVO_SEVER__PORT": "1"})


def test_a_wrong_type_in_the_environment_is_told_also_where_the_command_line_lies_over_it() -> None:
    with pytest.raises(ConfigError, match="CONVO_SERVER__PORT='abc'"):
        load_settings(environ={"CONVO_SERVER__PORT": "abc"}, arguments={("server", "port"): "1234"})


@pytest.mark.parametrize("text", ["eighty", "", "80.5", "70000"])
def test_a_variable_of_a_wrong_type_is_an_error_with_its_name_and_value(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"CONVO_SERVER__PORT={text!r}")):
        load_settings(environ={"CONVO_SERVER__PORT": text})


def test_variables_that_are_no_settings_are_left_alone() -> None:
    others = {"CONVO_TEST_DATABASE_URL": "x", "CONVO_URL": "x", "CONVO_KEY": "x", "PATH": "x", "CONVOY": "x"}
    assert load_settings(environ=others) == load_settings(environ={})


def test_the_terminal_commands_find_a_server_by_the_environment_or_by_the_defaults() -> None:
    assert client_address({}) == ("http://127.0.0.1:30020", "")
    assert client_address({"CONVO_URL": "http://there", "CONVO_KEY": "k"}) == ("http://there", "k")


@pytest.mark.parametrize(
    ("host", "found"),
    [("10.0.0.1", "10.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::2", "[::2]"), ("there", "there")],
)
def test_the_terminal_commands_find_a_server_where_the_same_settings_let_it_listen(host: str, found: str) -> None:
    environ = {"CONVO_SERVER__PORT": "31020", "CONVO_SERVER__HOST": host}
    assert client_address(environ)[0] == f"http://{found}:31020"
    assert client_address({**environ, "CONVO_URL": "http://there"})[0] == "http://there"


def test_a_port_left_to_chance_is_no_address() -> None:
    with pytest.raises(ConfigError, match="--url"):
        client_address({"CONVO_SERVER__PORT": "0"})


# --- who may reach it

OPEN = {"CONVO_SERVER__OPERATIONS_PORT": "9100", "CONVO_AUTH__KEYS": "true"}


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "10.0.0.1", "here.example", "127.example.com", "127.1", "fe80::1"]
)
@pytest.mark.parametrize("name", ["SERVER__HOST", "SERVER__OPERATIONS_HOST"])
def test_an_address_off_loopback_needs_consent(host: str, name: str) -> None:
    environ = {f"CONVO_{name}": host, "CONVO_SERVER__OPERATIONS_PORT": "9100"}
    with pytest.raises(ConfigError, match=r"CONVO_AUTH__OPEN_TO_NETWORK=true"):
        load_settings(environ=environ)
    load_settings(environ={**environ, "CONVO_AUTH__OPEN_TO_NETWORK": "true"})


def test_keys_open_no_address_that_needs_none() -> None:
    load_settings(environ=OPEN | {"CONVO_SERVER__HOST": "0.0.0.0"})
    with pytest.raises(ConfigError, match=r"server\.operations_host"):
        load_settings(environ=OPEN | {"CONVO_SERVER__OPERATIONS_HOST": "0.0.0.0"})


def test_an_operations_address_that_is_not_used_needs_no_consent() -> None:
    load_settings(environ={"CONVO_SERVER__OPERATIONS_HOST": "0.0.0.0"})


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.255.0.3", "::1", "::ffff:127.0.0.1"])
def test_loopback_needs_no_consent(host: str) -> None:
    load_settings(environ={"CONVO_SERVER__HOST": host, "CONVO_SERVER__OPERATIONS_HOST": host} | OPEN)


# --- secrets


WEBHOOK = {
    "CONVO_ALERTS__WEBHOOK_URL": "https://hooks.example/a?token=sekrit",
    "CONVO_ALERTS__WEBHOOK_SECRET": "whsec_" + "c2VrcmV0" * 4,
}


def test_the_addresses_of_sinks_come_from_the_environment() -> None:
    settings = load_settings(None, WEBHOOK)
    assert settings.alerts.webhook_url.reveal().endswith("sekrit")
    assert "sekrit" not in repr(settings)


@pytest.mark.parametrize(
    "changed",
    [
        {"CONVO_ALERTS__WEBHOOK_SECRET": ""},
        {"CONVO_ALERTS__WEBHOOK_URL": ""},
        {"CONVO_ALERTS__WEBHOOK_URL": "ftp://sekrit"},
        {"CONVO_ALERTS__SLACK_URL": "sekrit"},
        {"CONVO_ALERTS__GOOGLE_CHAT_URL": "https://a b/sekrit"},
        {"CONVO_ALERTS__WEBHOOK_SECRET": "sekrit"},
        {"CONVO_ALERTS__WEBHOOK_SECRET": "whsec_sekrit"},
        {"CONVO_ALERTS__WEBHOOK_SECRET": "whsec_" + "c2VrcmV0" * 12},
    ],
)
def test_a_sink_that_cannot_be_told_stops_the_start_and_shows_no_secret(changed: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="CONVO_ALERTS__") as caught:
        load_settings(None, {**WEBHOOK, **changed})
    assert "sekrit" not in str(caught.value)
    assert "c2Vr" not in str(caught.value)


@pytest.mark.parametrize("key", ["webhook_url", "webhook_secret", "slack_url", "google_chat_url"])
def test_no_sink_stands_in_a_file(tmp_path: Path, key: str) -> None:
    file = written(tmp_path, f'[alerts]\n{key} = "sekrit"')
    with pytest.raises(ConfigError, match=rf"alerts\.{key} is a secret, which must not be in a file") as caught:
        load_settings(file, {})
    assert "sekrit" not in str(caught.value)


@pytest.mark.parametrize("section", ["llm", "memory"])
def test_a_secret_in_a_file_is_refused_and_not_repeated(tmp_path: Path, section: str) -> None:
    file = written(tmp_path, f'[{section}]\napi_key = "sekrit"')
    with pytest.raises(ConfigError, match=rf"\$\.{section}\.api_key.*CONVO_{section.upper()}__API_KEY") as caught:
        load_settings(file, {})
    assert "sekrit" not in str(caught.value)


def test_a_secret_comes_from_the_environment_and_shows_itself_to_nobody_who_does_not_ask() -> None:
    environ = {
        "CONVO_LLM__API_KEY": "sekrit",
        "CONVO_LLM__MODEL": "m",
        "CONVO_MEMORY__API_KEY": "sekrit",
        "CONVO_MEMORY__URL": "http://there",
        "CONVO_DATABASE__URL": "postgresql://me:sekrit@there/convo",
    }
    settings = load_settings(environ=environ)
    assert settings.llm.api_key.reveal() == "sekrit"
    assert settings.database.url.reveal() == "postgresql://me:sekrit@there/convo"
    for shown in (repr(settings), str(settings), f"{settings.llm.api_key}", repr(settings.database.url)):
        assert "sekrit" not in shown
    with pytest.raises(TypeError):
        msgspec.json.encode(settings)


def test_a_secret_is_not_repeated_by_an_error_about_something_else() -> None:
    environ = {"CONVO_LLM__API_KEY": "sekrit", "CONVO_LLM__MODEL": "m", "CONVO_WEB__REQUEST_SECONDS": "60"}
    with pytest.raises(ConfigError) as caught:
        load_settings(environ=environ)
    assert "sekrit" not in str(caught.value)


FALLBACKS = {
    "CONVO_LLM__MODEL": "m",
    "CONVO_LLM__API_KEY": "sk-first",
    "CONVO_LLM__FALLBACKS__EU_1__BASE_URL": "https://eu.example/v1",
    "CONVO_LLM__FALLBACKS__EU_1__API_KEY": "sk-eu",
    "CONVO_LLM__FALLBACKS__EU_1__ATTEMPT_SECONDS": "7.5",
    "CONVO_LLM__FALLBACKS__EU_1__VERIFY": "false",
    "CONVO_LLM__FALLBACKS__EU_1__EXTRA": '{"seed": 7}',
    "CONVO_LLM__FALLBACKS__EU_1__PRICE_IN": "0.5",
    "CONVO_LLM__FALLBACKS__EU_1__PRICE_OUT": "1",
}


def test_tables_within_tables_are_set_by_variables_that_name_both_and_sekrit_keys_only_so() -> None:
    (one,) = load_settings(environ=FALLBACKS).llm.fallbacks.values()
    assert (one.base_url, one.api_key.reveal(), one.attempt_seconds) == ("https://eu.example/v1", "sk-eu", 7.5)
    assert (one.verify, one.extra, one.price_in, one.price_out) == (False, {"seed": 7}, 0.5, 1.0)
    assert "sk-eu" not in repr(one)


def test_a_variable_sets_one_key_of_a_table_that_a_file_has_and_new_names_come_last(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        '[llm]\nmodel = "m"\nfallbacks = { zoe = { model = "m-z" }, eu_1 = { model = "m-e" }, b = { model = "m-b" } }',
    )
    added = {"CONVO_LLM__FALLBACKS__A__MODEL": "m-a", "CONVO_LLM__FALLBACKS__B__MODEL": "m-other"}
    found = load_settings(file, FALLBACKS | added).llm.fallbacks
    assert [(name, one.model) for name, one in found.items()] == [
        *(("zoe", "m-z"), ("eu_1", "m-e"), ("b", "m-other"), ("a", "m-a")),
    ]
    assert found["eu_1"].api_key.reveal() == "sk-eu"


def test_a_whole_table_of_tables_comes_as_json_and_single_keys_go_over_it() -> None:
    whole = {"CONVO_LLM__FALLBACKS": '{"b": {"model": "m-b", "api_key": "sk-b"}}', "CONVO_LLM__MODEL": "m"}
    found = load_settings(environ=whole | {"CONVO_LLM__FALLBACKS__B__CONCURRENCY": "3"}).llm.fallbacks["b"]
    assert (found.model, found.api_key.reveal(), found.concurrency) == ("m-b", "sk-b", 3)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        (
            "B__BASE_URLS",
            "x",
            r"CONVO_LLM__FALLBACKS__B__BASE_URLS: \[llm\.fallbacks\.b\] has no such key; did you mean base_url",
        ),
        ("B__ATTEMPTS", "sekrit", "CONVO_LLM__FALLBACKS__B__ATTEMPTS: Expected `int"),
        ("B__API_KEY", "sekrit", "llm.fallbacks.b has neither a model nor a base_url"),
        ("B__HEADERS", "sekrit", "CONVO_LLM__FALLBACKS__B__HEADERS: its value is no JSON object"),
        ("_B__MODEL", "m", "matching regex"),
        ("B", "m", "there is no such setting"),
    ],
)
def test_a_wrong_key_of_a_table_within_a_table_is_named(name: str, value: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        load_settings(environ={"CONVO_LLM__MODEL": "m", f"CONVO_LLM__FALLBACKS__{name}": value})
    assert "sekrit" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "variable"), [('api_key = "sekrit"', "API_KEY"), ('headers = { x-token = "sekrit" }', "HEADERS")]
)
def test_no_secret_of_a_fallback_stands_in_a_file(tmp_path: Path, key: str, variable: str) -> None:
    file = written(tmp_path, f'[llm]\nmodel = "m"\n[llm.fallbacks.backup]\nmodel = "n"\n{key}')
    with pytest.raises(ConfigError, match=f"CONVO_LLM__FALLBACKS__BACKUP__{variable}") as caught:
        load_settings(file, {})
    assert "sekrit" not in str(caught.value)


def test_a_fallbacks_file_of_an_authority_lies_relative_to_the_settings(tmp_path: Path) -> None:
    file = written(tmp_path, '[llm]\nmodel = "m"\n[llm.fallbacks.b]\nmodel = "n"\nca_file = "ca.pem"')
    assert load_settings(file, {}).llm.fallbacks["b"].ca_file == str(tmp_path / "ca.pem")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"CONVO_LLM__MODEL": ""}, "llm.fallbacks names b, but llm.model is empty"),
        ({"CONVO_LLM__DAILY_BUDGET": "5"}, "llm.daily_budget = 5, but nothing is priced"),
        ({"CONVO_LLM__PRICE_IN": "5"}, "only one of price_in and price_out is set"),
        ({"CONVO_LLM__PRICE_CACHED": "5"}, "price_cached is set, and price_in and price_out are not"),
        ({"CONVO_LLM__FALLBACKS__B__HEADERS": '{"a b": "c"}'}, r"llm\.fallbacks\.b\.headers holds 'a b'"),
    ],
)
def test_models_budget_and_prices_have_to_fit_together(changes: dict[str, str], complaint: str) -> None:
    usual = {"CONVO_LLM__MODEL": "m", "CONVO_LLM__FALLBACKS__B__MODEL": "n"}
    with pytest.raises(ConfigError, match=complaint):
        load_settings(environ=usual | changes)


def test_an_empty_secret_is_false_and_two_equal_ones_are_equal() -> None:
    assert not Secret()
    assert Secret("a")
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert len({Secret("a"), Secret("a")}) == 1


def test_a_key_for_a_model_without_its_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"llm\.api_key is set but llm\.model is empty"):
        load_settings(environ={"CONVO_LLM__API_KEY": "sekrit"})


@pytest.mark.parametrize("text", ["", "convo.example.com", "a.example, 10.0.0.1 ::1 [2001:db8::1]", "*", "Convo."])
def test_names_and_addresses_are_hosts(text: str) -> None:
    assert load_settings(environ={"CONVO_SERVER__HOSTS": text}).server.hosts == text


@pytest.mark.parametrize(
    "text", ["http://a.example", "a.example:80", "a.example/", "10.0.0.1:80", "[::1]:80", "a@b", "a ::x"]
)
def test_a_host_with_more_than_its_name_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.hosts = .* is neither a name nor an address"):
        load_settings(environ={"CONVO_SERVER__HOSTS": text})


@pytest.mark.parametrize(
    "text", ["admin.example.com", "https://a.example/", "null", "https://a, *x", "https://a.example?b"]
)
def test_an_origin_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.cors_origins = .* is no origin"):
        load_settings(environ={"CONVO_SERVER__CORS_ORIGINS": text})


def test_the_pages_of_all_sites_are_never_allowed_to_use_a_key() -> None:
    everybody = {"CONVO_SERVER__CORS_ORIGINS": "*"}
    assert load_settings(environ=everybody).server.cors_origins == "*"
    with pytest.raises(ConfigError, match=r"server\.cors_origins = '\*' would let the pages of all sites use a key"):
        load_settings(environ=everybody | {"CONVO_AUTH__KEYS": "true"})


def test_no_section_takes_what_it_does_not_know() -> None:
    for kind in SECTIONS.values():
        assert kind.__struct_config__.forbid_unknown_fields
        assert kind.__struct_config__.frozen
    assert issubclass(ServerSettings, Section)


@pytest.mark.parametrize(
    "url", ["postgresql://me:sekrit@there/convo", "postgresql://there/convo?user=me&password=sekrit"]
)
def test_a_database_url_with_a_password_in_a_file_is_refused(tmp_path: Path, url: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f'[database]\nurl = "{url}"\n')
    with pytest.raises(ConfigError, match="CONVO_DATABASE__URL") as caught:
        load_settings(file, {})
    assert "sekrit" not in str(caught.value)


def test_a_key_for_a_memory_service_that_is_not_named_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"memory\.url"):
        load_settings(environ={"CONVO_MEMORY__API_KEY": "sekrit"})


@pytest.mark.parametrize(
    "environ", [{}, {"CONVO_LADDER__GATEWAY_SECONDS": "10", "CONVO_DATABASE__ACQUIRE_SECONDS": "30"}]
)
def test_a_statement_without_a_limit_is_refused_with_the_reason(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"statement_seconds = 0 would be no limit: .*budget.*`\$\.database`"):
        load_settings(environ=environ | {"CONVO_DATABASE__STATEMENT_SECONDS": "0"})


def test_a_statement_without_a_limit_is_refused_in_the_file_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"statement_seconds = 0 would be no limit"):
        load_settings(written(tmp_path, "[database]\nstatement_seconds = 0"), {})
    with pytest.raises(ConfigError, match=r"database\.statement_seconds = "):
        load_settings(written(tmp_path, '[database]\nstatement_seconds = "none"'), {})


@pytest.mark.parametrize(
    ("section", "key", "named"),
    [
        ("web", "body_bytes_max", "web.raw_bytes_max = 16777216"),
        ("web", "raw_bytes_max", "intake.bytes_in_flight_max = 67108864"),
    ],
)
def test_a_limit_of_bytes_that_can_never_be_reached_is_refused(
    tmp_path: Path, section: str, key: str, named: str
) -> None:
    load_settings(written(tmp_path, "[web]\nraw_bytes_max = 67108864\n"), {})
    with pytest.raises(ConfigError, match=rf"{section}\.{key} = 6710886[45] is above {named}"):
        load_settings(written(tmp_path, f"[{section}]\n{key} = {(64 << 20) + 1}\n"), {})


# --- tables, and files of authorities


def test_a_table_comes_from_the_environment_as_json() -> None:
    environ = {
        "CONVO_LLM__EXTRA": '{"seed": 1, "reasoning": {"effort": "low"}}',
        "CONVO_LLM__HEADERS": '{"x-portkey-api-key": "sekrit"}',
        "CONVO_LLM__QUERY": '{"api-version": "2024-10-21"}',
    }
    llm = load_settings(None, environ).llm
    assert llm.extra == {"seed": 1, "reasoning": {"effort": "low"}}
    assert llm.headers == {"x-portkey-api-key": "sekrit"}
    assert llm.query == {"api-version": "2024-10-21"}


def test_the_days_of_bots_come_from_the_file_or_from_the_environment_as_json(tmp_path: Path) -> None:
    file = written(
        tmp_path, '[retention]\nlogs_days = 30\nbots = { pika = { logs_days = 7 }, "a bot" = { dead_days = 0 } }\n'
    )
    retention = load_settings(file, {}).retention
    assert (retention.of(None, "pika").logs_days, retention.of(None, "other").logs_days) == (7, 30)
    assert retention.of(None, "a bot").logs_days == 30
    retention = load_settings(None, {"CONVO_RETENTION__BOTS": '{"pika": {"conversations_days": 3}}'}).retention
    assert retention.of(None, "pika").conversations_days == 3


@pytest.mark.parametrize("bots", ["{ pika = { log_days = 7 } }", "{ pika = { logs_days = -1 } }", "{ pika = 7 }"])
def test_days_of_a_bot_that_mean_nothing_are_refused(tmp_path: Path, bots: str) -> None:
    with pytest.raises(ConfigError, match=r"retention\.bots"):
        load_settings(written(tmp_path, f"[retention]\nbots = {bots}\n"), {})


@pytest.mark.parametrize(
    "text", ["sekrit", '{"a": 1, sekrit}', '["sekrit"]', '{"sekrit": 1}', '{"a": {"b": "sekrit"}}']
)
def test_a_table_of_another_form_is_an_error_that_does_not_repeat_it(text: str) -> None:
    with pytest.raises(ConfigError, match="CONVO_LLM__HEADERS") as raised:
        load_settings(None, {"CONVO_LLM__HEADERS": text})
    assert "sekrit" not in str(raised.value)


@pytest.mark.parametrize("header", ['"a b" = "1"', '"" = "1"', '"x-a" = "1\\n2"', '"x-a" = "ü"'])
def test_a_header_that_none_can_be_is_refused(tmp_path: Path, header: str) -> None:
    with pytest.raises(ConfigError, match=r"llm\.headers"):
        load_settings(written(tmp_path, f"[llm.headers]\n{header}"), {})


@pytest.mark.parametrize(
    "text",
    ['headers = { Authorization = "sekrit" }', 'headers = { x-api-key = "sekrit" }', 'query = { key = "sekrit" }'],
)
def test_a_secret_in_a_table_of_a_file_is_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="CONVO_LLM__") as raised:
        load_settings(written(tmp_path, f"[llm]\n{text}"), {})
    assert "sekrit" not in str(raised.value)


@pytest.mark.parametrize("section", ["llm", "memory", "alerts"])
def test_a_file_of_an_authority_is_taken_from_the_files_own_folder(tmp_path: Path, section: str) -> None:
    settings = load_settings(written(tmp_path, f'[{section}]\nca_file = "ca.pem"'), {})
    assert getattr(settings, section).ca_file == str(tmp_path / "ca.pem")
    assert getattr(settings, section).verify


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://u:secret@[half", "its value is no URL"),
        ("u:secret@127.0.0.1/convo", "does not begin with postgresql://"),
        ("mysql://u:secret@127.0.0.1/convo", "does not begin with postgresql://"),
    ],
)
def test_an_address_of_the_database_that_is_none_is_refused_without_its_password(url: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_settings(None, {"CONVO_DATABASE__URL": url})
    assert said in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:5432/convo",
        "mysql://127.0.0.1/convo",
        "postgresql+asyncpg://127.0.0.1/convo",
        "postgresql://u:s3cret@127.0.0.1:abc/convo",
        "postgresql://u:s3/cret@127.0.0.1/convo",
        "postgresql://a:5432,b:x/convo",
        "postgresql://u:s3\u2100cret@127.0.0.1/convo",
    ],
)
def test_an_address_of_no_postgresql_is_refused_with_an_example_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match=r"database\.url.*postgresql://USER@HOST:5432/DATABASE") as refused:
        load_settings(environ={"CONVO_DATABASE__URL": url})
    assert "s3" not in str(refused.value)


def test_a_bracket_that_is_never_closed_is_refused_with_the_form_for_ipv6() -> None:
    with pytest.raises(ConfigError, match=r"database\.url.*is no URL.*\?host=one,\[::1\]&port=") as refused:
        load_settings(environ={"CONVO_DATABASE__URL": "postgresql://u:s3cret@one,[::1/convo"})
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgres://127.0.0.1/convo",
        "postgresql://u:p@/convo?host=one,[::1]&port=5432,5433",
        "postgresql:///convo?host=/var/run/postgresql",
        "postgresql://u:p%40@[::1]:5432/convo?sslmode=require",
        "postgresql://u@a:5432,b:5433,c/convo?target_session_attrs=primary",
        "postgresql://u:p@%2Fvar%2Frun%2Fpostgresql/convo",
    ],
)
def test_the_forms_of_an_address_that_postgresql_knows_are_taken(url: str) -> None:
    assert load_settings(environ={"CONVO_DATABASE__URL": url}).database.url.reveal() == url


# --- e-mail and the rotation

MAIL = {"CONVO_SMTP__HOST": "mail", "CONVO_SMTP__SENDER": "convo@example.com"}
ANNA = {"CONVO_ONCALL__PEOPLE__ANNA__EMAIL": "anna@example.com"}


def test_a_rotation_is_read_from_tables_with_its_secrets_from_the_environment(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        """
        [smtp]
        host = "mail"
        sender = "convo@example.com"
        ca_file = "ca.pem"
        [oncall]
        start = 2027-01-04
        timezone = "Europe/Berlin"
        overrides = [{ from = 2027-03-01T09:00:00, until = 2027-03-03T09:00:00, person = "ben" }]
        levels = { CRITICAL = "all" }
        [oncall.people.anna]
        email = "anna@example.com"
        [oncall.people.ben]
        """,
    )
    found = load_settings(file, {"CONVO_ONCALL__PEOPLE__BEN__SLACK_URL": "https://slack.example/sekrit"})
    oncall = found.oncall
    assert oncall.turns == ("anna", "ben")
    assert oncall.people["ben"].slack_url.reveal() == "https://slack.example/sekrit"
    assert "sekrit" not in repr(found)
    assert oncall.overrides[0].from_.isoformat() == "2027-03-01T09:00:00"
    assert (oncall.paging("CRITICAL"), oncall.paging("HIGH")) == ("all", "nobody")
    assert found.smtp.ca_file == str(tmp_path / "ca.pem")


def test_a_rotation_is_read_from_the_environment_alone() -> None:
    override = {"from": "2027-03-01T09:00:00", "until": "2027-03-03T09:00:00+01:00", "person": "anna"}
    found = load_settings(
        environ={
            **MAIL,
            **ANNA,
            "CONVO_ONCALL__START": "2027-01-04",
            "CONVO_ONCALL__OVERRIDES": json.dumps([override]),
            "CONVO_ONCALL__ROTATION": '["anna"]',
        }
    )
    assert found.oncall.start.isoformat() == "2027-01-04"
    assert (found.oncall.turns, found.oncall.overrides[0].person) == (("anna",), "anna")
    assert found.oncall.paging("HIGH") == "escalate"


@pytest.mark.parametrize("key", ["pagerduty_key", "slack_url"])
def test_no_secret_of_a_person_stands_in_a_file(tmp_path: Path, key: str) -> None:
    file = written(tmp_path, f'[oncall.people.ben]\n{key} = "https://sekrit"')
    with pytest.raises(ConfigError, match=f"CONVO_ONCALL__PEOPLE__BEN__{key.upper()}") as caught:
        load_settings(file, {})
    assert "sekrit" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"CONVO_SMTP__HOST": ""}, r"oncall\.people\.anna\.email is set, but smtp\.host is empty"),
        ({"CONVO_SMTP__SENDER": ""}, "smtp.sender is empty"),
        ({"CONVO_SMTP__SENDER": "a\r\nb@c"}, "smtp.sender|CONVO_SMTP__SENDER"),
        ({"CONVO_SMTP__USER": "convo"}, "only one of smtp.user and CONVO_SMTP__PASSWORD"),
        (
            {"CONVO_SMTP__USER": "u", "CONVO_SMTP__PASSWORD": "sekrit", "CONVO_SMTP__SECURITY": "none"},
            "would send the password of smtp.user readably",
        ),
        ({"CONVO_ONCALL__PEOPLE__ANNA__EMAIL": ""}, r"oncall\.people\.anna can be notified in no way"),
        ({"CONVO_ONCALL__PEOPLE__BEN__SLACK_URL": "sekrit"}, "PEOPLE__BEN__SLACK_URL: its value is no http"),
        ({"CONVO_ONCALL__ROTATION": '["anna", "bob"]'}, "oncall.rotation names 'bob', who is not in oncall.people"),
        ({"CONVO_ONCALL__TIMEZONE": "Europe/Belrin"}, "oncall.timezone = 'Europe/Belrin' is no time zone"),
        ({"CONVO_ONCALL__TIMEZONE": "../etc/passwd"}, "is no time zone"),
        (
            {
                "CONVO_ONCALL__OVERRIDES": '[{"from": "2027-03-02T09:00:00", "until": "2027-03-02T09:00:00",'
                ' "person": "anna"}]'
            },
            "has one of anna that ends at 2027-03-02T09:00:00, not after its beginning",
        ),
        ({"CONVO_ONCALL__LEVELS": '{"URGENT": "all"}'}, "CONVO_ONCALL__LEVELS"),
        ({"CONVO_ONCALL__START": "soon"}, "CONVO_ONCALL__START"),
        ({"CONVO_ALERTS__PAGERDUTY_URL": "events.pagerduty.com"}, "alerts.pagerduty_url = 'events.pagerduty.com'"),
        ({"CONVO_SERVER__PUBLIC_URL": "convo.example.com"}, "server.public_url = 'convo.example.com' is no http"),
        ({"CONVO_SERVER__PUBLIC_URL": "https://convo.example.com/"}, "ends with a slash"),
    ],
)
def test_e_mail_and_the_rotation_have_to_fit_together(changes: dict[str, str], complaint: str) -> None:
    load_settings(environ=MAIL | ANNA)
    with pytest.raises(ConfigError, match=complaint) as caught:
        load_settings(environ=MAIL | ANNA | changes)
    assert "sekrit" not in str(caught.value)
