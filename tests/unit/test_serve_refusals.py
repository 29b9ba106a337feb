"""What `medray serve` refuses before Ray starts, and the config file that it writes."""

import socket
from pathlib import Path

import pytest
import yaml

from medray import cli
from medray.engine.serve_config import check_config
from medray.errors import ConfigError
from medray.verbs.serving import parse_size
from tests.prepared_data import mask_examples
from tests.tiny_models import fresh_package, tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    recipe, hparams = tiny("pancreas_segmentation", filters=(4, 8))
    examples = {"train": mask_examples(1, size=16, seed=0)}
    return fresh_package(
        tmp_path_factory.mktemp("m"), recipe, hparams, examples, {"threshold": 0.5}
    )


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDRAY_API_KEYS", raising=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["p=MODEL"], "no API key is configured"),
        (["p=MODEL", "--no-auth", "--host", "0.0.0.0"], "--no-auth serves loopback only"),
        (["p=MODEL", "--keys", "/nowhere/keys"], "key file"),
        (["MODEL", "--no-auth"], "a model is given as NAME=MODEL"),
        (["P=MODEL", "--no-auth"], "lower-case letters"),
        (["p=MODEL", "p=MODEL", "--no-auth"], "the name p is given twice"),
        (["p=/nowhere", "--no-auth"], "no model can be served"),
        (["p=MODEL", "--no-auth", "--set", "p.treshold=0.4"], "did you mean 'threshold'"),
        (["p=MODEL", "--no-auth", "--set", "p.threshold=2"], "must be a number in 0.00"),
        (["p=MODEL", "--no-auth", "--set", "q.threshold=0.4"], "unknown model 'q'"),
        (["p=MODEL", "--no-auth", "--set", "p.threshold=high"], "NAME.PARAMETER=NUMBER"),
        (["p=MODEL", "--no-auth", "--max-body", "1TB"], "--max-body takes bytes"),
        (["p=MODEL", "--no-auth", "--min-replicas", "3"], "--min-replicas"),
        (["p=MODEL", "--no-auth", "--gpus", "1.5"], "--gpus"),
        (["p=MODEL", "--no-auth", "--policy", "maybe"], "unknown policy 'maybe'"),
    ],
)
def test_a_service_that_cannot_be_is_refused_in_one_line(
    model: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["serve", *(item.replace("MODEL", model) for item in arguments)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert message in said[-1], said


def test_a_port_in_use_is_refused(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert cli.run(["serve", f"p={model}", "--no-auth", "--port", port]) == 2
    assert f"port {port} of 127.0.0.1 cannot be used" in capsys.readouterr().err


def test_sizes_are_read() -> None:
    assert [parse_size(text, "--x") for text in ("5", "5KiB", "2 MiB", "1gib")] == [
        5, 5 << 10, 2 << 20, 1 << 30,
    ]  # fmt: skip
    for text in ("", "0", "-5", "5TB", "MiB", "1.5GiB"):
        with pytest.raises(ConfigError, match="--x takes bytes"):
            parse_size(text, "--x")


def test_a_config_is_written_and_strictly_checked(model: str, tmp_path: Path) -> None:
    out = tmp_path / "serve.yaml"
    arguments = [f"p={model}", "--no-auth", "--set", "p.threshold=0.25", "--max-replicas", "5"]
    assert cli.run(["serve", *arguments, "--write-config", str(out)]) == 0
    config = yaml.safe_load(out.read_text())
    (app,) = config["applications"]
    assert app["import_path"] == "medray.serving:build"
    assert app["args"]["max_replicas"] == 5
    for deployment in app["deployments"]:
        served = deployment["user_config"]["models"]["p"]
        assert served["inference"] == {"threshold": 0.25}
    check_config(config)
    for where, name in (
        (config, "proxy_loc"),
        (config["http_options"], "prot"),
        (app, "import_pth"),
        (app["deployments"][0], "max_ongoing_request"),
    ):
        where[name] = 1
        with pytest.raises(ConfigError, match=rf"drop these keys silently: .*{name}"):
            check_config(config)
        del where[name]
    app["args"]["max_replica"] = 3
    with pytest.raises(ConfigError, match="args do not hold"):
        check_config(config)
