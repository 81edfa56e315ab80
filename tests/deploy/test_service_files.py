"""The Dockerfile, its neighbours and the systemd unit, by what they say: no Docker engine is needed.

`docker build` itself is not run here. What the files promise (extras, options, limits) is compared with the package.
"""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
STATEMENTS = {
    "FROM",
    "ARG",
    "ENV",
    "WORKDIR",
    "COPY",
    "RUN",
    "USER",
    "VOLUME",
    "EXPOSE",
    "HEALTHCHECK",
    "ENTRYPOINT",
    "CMD",
}


def dockerfile() -> list[tuple[str, str]]:
    """Return the statements, one pair of keyword and arguments each."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


def last_stage() -> dict[str, list[str]]:
    """Return the statements of the image itself by keyword."""
    statements = dockerfile()
    start = max(index for index, (keyword, _) in enumerate(statements) if keyword == "FROM")
    found: dict[str, list[str]] = {}
    for keyword, arguments in statements[start:]:
        found.setdefault(keyword, []).append(arguments)
    return found


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(DEPLOY / "fullfield.service", encoding="utf-8")
    return parser


def drain_limit() -> float:
    settings = pytest.importorskip("fullfield.deploy.serve.settings")
    return float(settings.ServeSettings.shutdown_timeout_s)


def extras() -> dict[str, list[str]]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        found: dict[str, list[str]] = tomllib.load(file)["project"]["optional-dependencies"]
    return found


def test_every_statement_of_the_dockerfile_is_one() -> None:
    assert {keyword for keyword, _ in dockerfile()} <= STATEMENTS
    assert all(":" in arguments for keyword, arguments in dockerfile() if keyword == "FROM")  # a version is named


def test_the_image_runs_as_a_numbered_user_without_rights() -> None:
    (user,) = last_stage()["USER"]
    uid, gid = map(int, user.split(":"))
    assert min(uid, gid) >= 1000
    assert not re.search(r"\b(sudo|chmod\s+777|apt-get)\b", (DEPLOY / "Dockerfile").read_text())


def test_the_image_starts_serve_without_a_shell_and_knows_whether_it_is_well() -> None:
    image = last_stage()
    (entry,), (command,), (health,) = image["ENTRYPOINT"], image["CMD"], image["HEALTHCHECK"]
    started = yaml.safe_load(entry) + yaml.safe_load(command)  # a JSON list is YAML, too
    assert started[:2] == ["fullfield", "serve"]
    (port,) = image["EXPOSE"]
    assert started[started.index("--port") + 1] == port
    assert "CMD [" in health
    assert f"127.0.0.1:{port}/health" in health


def test_the_extras_that_are_installed_exist() -> None:
    text = "\n".join((DEPLOY / name).read_text(encoding="utf-8") for name in ("Dockerfile", "fullfield.service"))
    named = [names.split(",") for names in re.findall(r"(?:EXTRAS=|fullfield\[)([a-z][a-z,]*)", text)]
    assert ["run", "serve"] in named
    assert {name for names in named for name in names} <= extras().keys()


def test_the_usual_image_has_no_pytorch() -> None:
    default = next(arguments for keyword, arguments in dockerfile() if arguments.startswith("EXTRAS="))
    needed, queue = set(), default.partition("=")[2].split(",")
    while queue:
        for requirement in extras()[queue.pop()]:
            inner = re.fullmatch(r"fullfield\[(.+)\]", requirement)
            queue += inner[1].split(",") if inner else []
            needed.add(re.split(r"[^A-Za-z0-9-]", requirement)[0])
    assert not needed & {"torch", "torchvision", "timm"}


def test_no_file_holds_a_secret_and_little_reaches_the_builder() -> None:
    for name in ("Dockerfile", "compose.yaml", "fullfield.service"):
        text = (DEPLOY / name).read_text(encoding="utf-8")
        assert not re.search(r"(?i)(password|secret|token)\s*[=:]", text)
        assert not re.search(r"FULLFIELD_API_KEYS[=:]\s*[A-Za-z0-9]{8}", text)
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[1] == "*"
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = {
        word
        for keyword, arguments in dockerfile()
        if keyword == "COPY" and "--from" not in arguments
        for word in arguments.split()[:-1]
    }
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)


def test_compose_mounts_models_read_only_and_waits_for_the_service_to_finish() -> None:
    service: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"][
        "fullfield"
    ]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert all(volume.endswith(":ro") for volume in service["volumes"])
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert "FULLFIELD_API_KEYS:?" in service["environment"]["FULLFIELD_API_KEYS"]
    assert float(service["stop_grace_period"].removesuffix("s")) > drain_limit()


def test_the_unit_stops_only_the_main_process_and_waits_longer_than_it_needs() -> None:
    service = unit()["Service"]
    assert (service["KillSignal"], service["KillMode"], service["Restart"]) == ("SIGTERM", "mixed", "on-failure")
    assert float(service["TimeoutStopSec"]) > drain_limit()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("DynamicUser", "yes"), ("NoNewPrivileges", "yes"), ("ProtectSystem", "strict"), ("ProtectHome", "yes")),
        *(("PrivateTmp", "yes"), ("PrivateDevices", "yes"), ("CapabilityBoundingSet", ""), ("IPAddressDeny", "any")),
        *(("MemoryMax", "2G"), ("SystemCallFilter", "@system-service"), ("OOMPolicy", "continue")),
    ],
)
def test_the_unit_is_confined(key: str, value: str) -> None:
    assert unit()["Service"][key] == value


def test_the_unit_starts_serve_with_keys_that_only_it_can_read() -> None:
    service = unit()["Service"]
    words = shlex.split(service["ExecStart"])
    assert words[1:2] == ["serve"]
    assert words[words.index("--keys") + 1] == "%d/keys"
    assert service["LoadCredential"].partition(":")[0] == "keys"


def test_the_options_that_the_files_name_are_options_of_serve(capsys: pytest.CaptureFixture[str]) -> None:
    serve = pytest.importorskip("fullfield.cli.serve")
    with pytest.raises(SystemExit):
        serve.run(["--help"])
    told = capsys.readouterr().out
    for option in ("--host", "--port", "--keys"):
        assert option in told


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("needs systemd-analyze, which comes with systemd")
    text = (DEPLOY / "fullfield.service").read_text(encoding="utf-8")
    copy = tmp_path / "fullfield.service"
    copy.write_text(text.replace("/opt/fullfield/bin/fullfield", sys.executable), encoding="utf-8")
    words = [analyze, "verify", "--recursive-errors=no", str(copy)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "fullfield.service" not in done.stderr, done.stderr  # unknown keys are warnings
