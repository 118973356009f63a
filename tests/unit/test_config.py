from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from convo import config
from convo.config import DEFAULT_FILE, Secret, Section, Settings, check_ladder, client_address, ladder, load, read
from convo.errors import ConfigError

SECRETS = {
    *(("llm", "api_key"), ("memory", "api_key")),
    *(("alerts", name) for name in ("webhook_url", "webhook_secret", "slack_url", "google_chat_url")),
}
"""They come from the environment only: the file has no place for them."""
SECTIONS = {field.name: field.type for field in msgspec.structs.fields(Settings)}
IN_FILE: dict[str, dict[str, Any]] = tomllib.loads(DEFAULT_FILE.read_text("utf-8"))
KEYS = [
    (section, field.name)
    for section, kind in SECTIONS.items()
    for field in msgspec.structs.fields(kind)
    if (section, field.name) not in SECRETS
]


def default(section: str, key: str) -> Any:
    value = getattr(getattr(Settings(), section), key)
    return value.reveal() if isinstance(value, Secret) else value


def written(folder: Path, text: str) -> Path:
    file = folder / "config.toml"
    file.write_text(text, "utf-8")
    return file


def changed(**sections: dict[str, object]) -> Settings:
    tables = {name: msgspec.structs.replace(getattr(Settings(), name), **keys) for name, keys in sections.items()}
    return msgspec.structs.replace(Settings(), **tables)


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
    kinds = {"Seconds": config.Seconds, "SecondsOrNone": config.SecondsOrNone}
    for section, kind in SECTIONS.items():
        for field in msgspec.structs.fields(kind):
            if field.type in kinds.values():
                assert field.name.endswith("_seconds"), f"{section}.{field.name}"
            if field.type == config.Bytes:
                assert "bytes" in field.name.split("_"), f"{section}.{field.name}"


def test_the_repositorys_file_loads_to_the_defaults_but_for_the_folder_beside_it() -> None:
    settings = load(environ={})
    assert settings.server.data_dir == str(DEFAULT_FILE.parent / ".convo")
    server = msgspec.structs.replace(settings.server, data_dir=".convo")
    assert msgspec.structs.replace(settings, server=server) == Settings()


def test_without_any_file_the_defaults_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "none.toml")
    assert load(environ={}) == Settings()


def test_a_named_file_that_is_not_there_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path / "other.toml"))):
        load(tmp_path / "other.toml", {})


@pytest.mark.parametrize("text", ["[server", "port = ", "[server]\nport = 1\nport = 2"])
def test_a_file_that_is_not_toml_is_an_error_with_its_path(tmp_path: Path, text: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError, match=re.escape(str(file))):
        load(file, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[server]\nprot = 80", r"config\.toml: \$\.server\.prot: there is no such key; did you mean port\?"),
        ("[servr]\nport = 80", r"config\.toml: \$\.servr: there is no such key; did you mean server\?"),
        ("[jobs]\nxyzzy = 1", r"config\.toml: \$\.jobs\.xyzzy: there is no such key$"),
        ("[server]\nhost = 5", r"config\.toml: .*\$\.server\.host"),
        ('[server]\nport = "80"', r"\$\.server\.port"),
        ("[server]\nport = 70000", r"\$\.server\.port"),
        ("[server]\nport = -1", r"\$\.server\.port"),
        ("[jobs]\nworkers = 1.5", r"\$\.jobs\.workers"),
        ("[jobs]\nlease_seconds = 0", r"\$\.jobs\.lease_seconds"),
        ("[jobs]\nlease_seconds = nan", r"\$\.jobs\.lease_seconds"),
        ("[jobs]\nlease_seconds = inf", r"\$\.jobs\.lease_seconds"),
        ('[memory]\ndialect = "mem1"', r"\$\.memory\.dialect"),
        ("[database]\npool_max = 1", r"\$\.database\.pool_max"),
        ("[database]\nurl = 5", r"\$\.database\.url"),
        ("[score]\nfriend_from = 500", r"friend_from .500..*acquaintance_from .500.*\$\.score"),
        ("server = 3", r"\$\.server"),
    ],
)
def test_a_misspelt_key_or_a_wrong_value_is_an_error_with_its_path(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(written(tmp_path, text), {})


def test_a_relative_folder_in_a_file_is_taken_from_the_files_own(tmp_path: Path) -> None:
    assert load(written(tmp_path, '[server]\ndata_dir = "here"'), {}).server.data_dir == str(tmp_path / "here")
    assert load(written(tmp_path, '[server]\ndata_dir = "/there"'), {}).server.data_dir == "/there"


def test_a_relative_folder_from_elsewhere_is_taken_from_the_working_folder() -> None:
    assert load(environ={"CONVO_SERVER__DATA_DIR": "here"}).server.data_dir == "here"


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
    found = getattr(getattr(load(file, {name: text}), key[0]), key[1])
    assert found == value
    assert type(found) is type(value)


def test_the_command_line_wins_over_both(tmp_path: Path) -> None:
    file = written(tmp_path, "[server]\nport = 1")
    assert load(file, {"CONVO_SERVER__PORT": "2"}, {("server", "port"): "3"}).server.port == 3


def test_what_the_file_says_beside_it_still_holds(tmp_path: Path) -> None:
    settings = load(written(tmp_path, '[server]\nhost = "::1"'), {"CONVO_SERVER__PORT": "2"})
    assert (settings.server.host, settings.server.port) == ("::1", 2)


@pytest.mark.parametrize(
    "name", ["CONVO_SERVER__PROT", "CONVO_SEVER__PORT", "CONVO_PORT", "CONVO_", "CONVO___PORT", "CONVO_SERVER__"]
)
def test_an_unknown_variable_is_an_error_with_its_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: there is no such setting"):
        load(environ={name: "1"})


def test_the_nearest_variable_is_named() -> None:
    with pytest.raises(ConfigError, match=r"did you mean CONVO_SERVER__PORT\?"):
        load(environ={"CONVO_SEVER__PORT": "1"})


def test_a_wrong_type_in_the_environment_is_told_also_where_the_command_line_lies_over_it() -> None:
    with pytest.raises(ConfigError, match="CONVO_SERVER__PORT='abc'"):
        load(environ={"CONVO_SERVER__PORT": "abc"}, arguments={("server", "port"): "1234"})


@pytest.mark.parametrize("text", ["eighty", "", "80.5", "70000"])
def test_a_variable_of_a_wrong_type_is_an_error_with_its_name_and_value(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"CONVO_SERVER__PORT={text!r}")):
        load(environ={"CONVO_SERVER__PORT": text})


def test_variables_that_are_no_settings_are_left_alone() -> None:
    others = {"CONVO_TEST_DATABASE_URL": "x", "CONVO_URL": "x", "CONVO_KEY": "x", "PATH": "x", "CONVOY": "x"}
    assert load(environ=others) == load(environ={})


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


# --- secrets


WEBHOOK = {
    "CONVO_ALERTS__WEBHOOK_URL": "https://hooks.example/a?token=sekrit",
    "CONVO_ALERTS__WEBHOOK_SECRET": "whsec_" + "c2VrcmV0" * 4,
}


def test_the_addresses_of_sinks_come_from_the_environment() -> None:
    settings = load(None, WEBHOOK)
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
        load(None, {**WEBHOOK, **changed})
    assert "sekrit" not in str(caught.value)
    assert "c2Vr" not in str(caught.value)


@pytest.mark.parametrize("key", ["webhook_url", "webhook_secret", "slack_url", "google_chat_url"])
def test_no_sink_stands_in_a_file(tmp_path: Path, key: str) -> None:
    file = written(tmp_path, f'[alerts]\n{key} = "sekrit"')
    with pytest.raises(ConfigError, match=rf"alerts\.{key} stands in a file") as caught:
        load(file, {})
    assert "sekrit" not in str(caught.value)


@pytest.mark.parametrize("section", ["llm", "memory"])
def test_a_secret_in_a_file_is_refused_and_not_repeated(tmp_path: Path, section: str) -> None:
    file = written(tmp_path, f'[{section}]\napi_key = "sekrit"')
    with pytest.raises(ConfigError, match=rf"\$\.{section}\.api_key.*CONVO_{section.upper()}__API_KEY") as caught:
        load(file, {})
    assert "sekrit" not in str(caught.value)


def test_a_secret_comes_from_the_environment_and_shows_itself_to_nobody_who_does_not_ask() -> None:
    environ = {
        "CONVO_LLM__API_KEY": "sekrit",
        "CONVO_LLM__MODEL": "m",
        "CONVO_MEMORY__API_KEY": "sekrit",
        "CONVO_MEMORY__URL": "http://there",
        "CONVO_DATABASE__URL": "postgresql://me:sekrit@there/convo",
    }
    settings = load(environ=environ)
    assert settings.llm.api_key.reveal() == "sekrit"
    assert settings.database.url.reveal() == "postgresql://me:sekrit@there/convo"
    for shown in (repr(settings), str(settings), f"{settings.llm.api_key}", repr(settings.database.url)):
        assert "sekrit" not in shown
    with pytest.raises(TypeError):
        msgspec.json.encode(settings)


def test_a_secret_is_not_repeated_by_an_error_about_something_else() -> None:
    environ = {"CONVO_LLM__API_KEY": "sekrit", "CONVO_LLM__MODEL": "m", "CONVO_WEB__REQUEST_SECONDS": "60"}
    with pytest.raises(ConfigError) as caught:
        load(environ=environ)
    assert "sekrit" not in str(caught.value)


def test_an_empty_secret_is_false_and_two_equal_ones_are_equal() -> None:
    assert not Secret()
    assert Secret("a")
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert len({Secret("a"), Secret("a")}) == 1


def test_a_key_for_a_model_without_its_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"llm\.api_key is set but llm\.model is empty"):
        load(environ={"CONVO_LLM__API_KEY": "sekrit"})


# --- the ladder


def test_the_ladder_stands_by_default() -> None:
    assert check_ladder(Settings()) == []


RUNGS: list[tuple[dict[str, dict[str, object]], tuple[str, ...], tuple[str, str]]] = [
    (
        {"database": {"acquire_seconds": 3.5, "statement_seconds": 2.75}},
        ("database.acquire_seconds", "database.statement_seconds", "web.request_seconds"),
        ("12.5 s", "8 s"),
    ),
    (
        {"connection": {"head_seconds": 9.5}},
        ("connection.head_seconds", "web.request_seconds"),
        ("9.5 s", "8 s"),
    ),
    (
        {"connection": {"body_seconds": 8.25}},
        ("connection.body_seconds", "web.request_seconds"),
        ("8.25 s", "8 s"),
    ),
    (
        {"connection": {"write_seconds": 3.0}},
        ("web.request_seconds", "connection.write_seconds", "ladder.gateway_seconds"),
        ("11 s", "10 s"),
    ),
    (
        {"llm": {"attempt_seconds": 60.0, "attempts": 2, "backoff_max_seconds": 4.0}},
        ("llm.attempt_seconds", "analysis.job_seconds"),
        ("124 s", "120 s"),
    ),
    (
        {"memory": {"attempt_seconds": 60.0, "attempts": 4, "backoff_max_seconds": 5.0}},
        ("memory.attempt_seconds", "analysis.job_seconds"),
        ("255 s", "120 s"),
    ),
    (
        {"jobs": {"heartbeat_seconds": 11.0}},
        ("jobs.heartbeat_seconds", "jobs.lease_seconds"),
        ("33 s", "30 s"),
    ),
    (
        {"shutdown": {"notice_seconds": 7.0}},
        ("shutdown.notice_seconds", "intake_seconds", "workers_seconds", "settle_seconds", "ladder.kill_seconds"),
        ("33 s", "30 s"),
    ),
    (
        {"ladder": {"gateway_keep_alive_seconds": 75.0}},
        ("ladder.gateway_keep_alive_seconds", "connection.keep_alive_seconds"),
        ("75 s", "55 s"),
    ),
    (
        {"alerts": {"slow_request_seconds": 8.5}},
        ("alerts.slow_request_seconds", "web.request_seconds"),
        ("8.5 s", "8 s"),
    ),
    (
        {"alerts": {"slow_query_seconds": 3.25}},
        ("alerts.slow_query_seconds", "database.acquire_seconds", "database.statement_seconds"),
        ("3.25 s", "3 s"),
    ),
]


@pytest.mark.parametrize(("sections", "keys", "numbers"), RUNGS)
def test_a_broken_rung_names_both_keys_both_numbers_and_what_would_happen(
    sections: dict[str, dict[str, object]], keys: tuple[str, ...], numbers: tuple[str, str]
) -> None:
    (sentence,) = check_ladder(changed(**sections))
    for word in (*keys, *numbers):
        assert word in sentence
    assert re.search(r"s: \w.* would ", sentence)


@pytest.mark.parametrize(
    ("sections", "stands"),
    [
        ({"database": {"acquire_seconds": 1.0, "statement_seconds": 3.0}}, False),
        ({"web": {"request_seconds": 8.5}}, False),
        ({"connection": {"head_seconds": 8.0, "body_seconds": 8.0}}, True),
        ({"llm": {"attempt_seconds": 60.0, "attempts": 2, "backoff_max_seconds": 1e-9}}, False),
        ({"llm": {"attempt_seconds": 55.0, "attempts": 2, "backoff_max_seconds": 10.0}}, True),
        ({"memory": {"attempt_seconds": 55.0, "attempts": 2, "backoff_max_seconds": 10.0}}, True),
        ({"jobs": {"heartbeat_seconds": 10.0}}, True),
        ({"shutdown": {"notice_seconds": 4.0}}, False),
        ({"ladder": {"gateway_keep_alive_seconds": 55.0}}, False),
        ({"alerts": {"slow_request_seconds": 8.0}}, False),
        ({"alerts": {"slow_query_seconds": 3.0}}, False),
        ({"alerts": {"slow_request_seconds": 7.9, "slow_query_seconds": 2.9}}, True),
    ],
)
def test_a_tie_breaks_a_rung_only_where_less_is_asked_for(
    sections: dict[str, dict[str, object]], *, stands: bool
) -> None:
    assert (check_ladder(changed(**sections)) == []) is stands


GATEWAY_10 = {"CONVO_LADDER__GATEWAY_SECONDS": "10"}
GATEWAY_15 = {"CONVO_LADDER__GATEWAY_SECONDS": "15"}
POOL_WAIT_30 = {"CONVO_DATABASE__ACQUIRE_SECONDS": "30"}
TEN_AND_TEN = {"CONVO_DATABASE__ACQUIRE_SECONDS": "10", "CONVO_DATABASE__STATEMENT_SECONDS": "10"}
ACCEPT = "2 x (database.acquire_seconds + database.statement_seconds)"

OLD: list[tuple[dict[str, str], tuple[str, ...]]] = [
    # as it was: 30 s for a place in the pool, whichever budget one tries to put around it
    (GATEWAY_10 | POOL_WAIT_30, (f"{ACCEPT} = 64 s is not below web.request_seconds = 8 s",)),
    (
        GATEWAY_10 | POOL_WAIT_30 | {"CONVO_WEB__REQUEST_SECONDS": "65"},
        ("web.request_seconds + connection.write_seconds = 66.5 s is not below ladder.gateway_seconds = 10 s: the",),
    ),
    # as it was mended: 10 + 10 s under a gateway of 10 to 15 s
    (GATEWAY_10 | TEN_AND_TEN, (f"{ACCEPT} = 40 s is not below web.request_seconds = 8 s",)),
    (
        GATEWAY_15 | TEN_AND_TEN | {"CONVO_WEB__REQUEST_SECONDS": "13"},
        (f"{ACCEPT} = 40 s is not below web.request_seconds = 13 s",),
    ),
    (
        GATEWAY_15 | TEN_AND_TEN | {"CONVO_WEB__REQUEST_SECONDS": "41"},
        ("web.request_seconds + connection.write_seconds = 42.5 s is not below ladder.gateway_seconds = 15 s",),
    ),
    (
        {
            "CONVO_MEMORY__ATTEMPT_SECONDS": "240",
            "CONVO_MEMORY__ATTEMPTS": "1",
            "CONVO_ANALYSIS__JOB_SECONDS": "180",
        },
        ("memory.attempt_seconds x attempts + backoffs = 240 s is above analysis.job_seconds = 180 s",),
    ),
    (
        GATEWAY_10 | {"CONVO_ALERTS__SLOW_REQUEST_SECONDS": "10"},
        ("alerts.slow_request_seconds = 10 s is not below web.request_seconds = 8 s: no request would be told",),
    ),
]


@pytest.mark.parametrize(("environ", "faults"), OLD)
def test_the_numbers_of_the_old_service_would_not_start(environ: dict[str, str], faults: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(environ=environ)
    told = str(caught.value).splitlines()[1:]
    assert len(told) == len(faults)
    for line, fault in zip(told, faults, strict=True):
        assert line.strip().startswith(fault)


def test_all_faults_of_the_old_service_at_once_are_each_named() -> None:
    everything = {name: text for environ, _ in OLD for name, text in environ.items()} | {
        "CONVO_WEB__REQUEST_SECONDS": "10"
    }
    with pytest.raises(ConfigError) as caught:
        load(environ=everything | {"CONVO_LADDER__GATEWAY_SECONDS": "10"})
    told = str(caught.value)
    for pair in (
        (ACCEPT, "web.request_seconds = 10 s"),
        ("web.request_seconds + connection.write_seconds = 11.5 s", "ladder.gateway_seconds = 10 s"),
        ("memory.attempt_seconds", "analysis.job_seconds = 180 s"),
        ("alerts.slow_request_seconds = 10 s", "web.request_seconds = 10 s"),
    ):
        assert re.search(f"{re.escape(pair[0])}.* (is not below|is above) {re.escape(pair[1])}", told), pair


@pytest.mark.parametrize("environ", [{}, GATEWAY_10 | POOL_WAIT_30])
def test_a_statement_without_a_limit_is_refused_with_the_reason(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"statement_seconds = 0 would be no limit: .*budget.*`\$\.database`"):
        load(environ=environ | {"CONVO_DATABASE__STATEMENT_SECONDS": "0"})


def test_a_statement_without_a_limit_is_refused_in_the_file_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"statement_seconds = 0 would be no limit"):
        load(written(tmp_path, "[database]\nstatement_seconds = 0"), {})
    with pytest.raises(ConfigError, match=r"\$\.database\.statement_seconds"):
        load(written(tmp_path, '[database]\nstatement_seconds = "none"'), {})


def test_a_broken_ladder_is_read_for_whoever_wants_to_see_it() -> None:
    settings = read(environ={"CONVO_WEB__REQUEST_SECONDS": "11"})
    assert [rung.stands for rung in ladder(settings)].count(False) == 1


def test_every_rung_has_its_test() -> None:
    # Whoever adds a rung adds it here: all of them broken at once are as many sentences as there are rungs.
    everything: dict[str, dict[str, object]] = {}
    for sections, _, _ in RUNGS:
        for section, keys in sections.items():
            everything.setdefault(section, {}).update(keys)
    everything["alerts"] = {"slow_request_seconds": 60.0, "slow_query_seconds": 60.0}
    settings = changed(**everything)
    assert len(check_ladder(settings)) == len(RUNGS) == len(ladder(settings))


def test_the_readme_shows_the_ladder_as_it_is() -> None:
    text = (DEFAULT_FILE.parent / "README.md").read_text("utf-8")
    section = text.partition("\n## The ladder\n")[2].partition("\n## ")[0].translate({ord("×"): "x", ord("`"): None})
    shown = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in section.replace("≤", "<=").splitlines()
        if line.startswith("| ") and "from the inside" not in line
    ]
    assert shown == [
        (
            rung.inside,
            f"{rung.inside_seconds:g} s",
            f"{rung.relation} {rung.outside}",
            f"{rung.outside_seconds:g} s",
            rung.otherwise,
        )
        for rung in ladder(Settings())
    ]


def test_no_section_takes_what_it_does_not_know() -> None:
    for kind in SECTIONS.values():
        assert kind.__struct_config__.forbid_unknown_fields
        assert kind.__struct_config__.frozen
    assert issubclass(config.ServerSettings, Section)


@pytest.mark.parametrize(
    "url", ["postgresql://me:sekrit@there/convo", "postgresql://there/convo?user=me&password=sekrit"]
)
def test_a_database_url_with_a_password_in_a_file_is_refused(tmp_path: Path, url: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f'[database]\nurl = "{url}"\n')
    with pytest.raises(ConfigError, match="CONVO_DATABASE__URL") as caught:
        load(file, {})
    assert "sekrit" not in str(caught.value)


def test_a_key_for_a_memory_service_that_is_not_named_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"memory\.url"):
        load(environ={"CONVO_MEMORY__API_KEY": "sekrit"})
