"""cluster.yaml and the example for bare machines, as Ray's own cluster launcher prepares and checks them."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import pytest

from tests.infra.files import INFRA, ROOT, read_yaml

AWS, LOCAL = ROOT / "cluster.yaml", INFRA / "local" / "cluster.yaml"
TOKEN_VARIABLE = "--env=RAY_AUTH_TOKEN_PATH="  # noqa: S105 - the name of a variable


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration as `ray up` uses it; raises what `ray up` stops with."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    ready: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(ready)
    return ready


@pytest.fixture(scope="module")
def aws() -> dict[str, Any]:
    config: dict[str, Any] = read_yaml(AWS)
    return config


@pytest.mark.parametrize("path", [AWS, LOCAL], ids=["aws", "local"])
def test_ray_takes_the_file(path: Any) -> None:
    """Ray's own preparation and schema accept the file, with limits on nodes and a head that runs no actors."""
    config = prepared(read_yaml(path))
    assert 0 < config["max_workers"] <= 20
    assert config["idle_timeout_minutes"] > 0
    (start,) = (line for line in config["head_start_ray_commands"] if "ray start" in line)
    assert "--num-cpus=0 " in start
    assert "--dashboard-host=127.0.0.1" in start
    assert config["setup_commands"] == []  # Ray's default installs a nightly build


@pytest.mark.parametrize("path", [AWS, LOCAL], ids=["aws", "local"])
def test_every_node_wants_the_token(path: Any) -> None:
    """The token comes by a mounted folder and Ray is told where it lies; it stands in no variable and no command."""
    config = read_yaml(path)
    options = config["docker"]["run_options"]
    assert "--env=RAY_AUTH_MODE=token" in options
    (token_path,) = (option.removeprefix(TOKEN_VARIABLE) for option in options if option.startswith(TOKEN_VARIABLE))
    (remote,) = config["file_mounts"]
    assert token_path.startswith(f"{remote}/")
    assert not [option for option in options if "RAY_AUTH_TOKEN=" in option or "AWS_" in option]


def test_a_typo_is_found(aws: dict[str, Any]) -> None:
    """The check is one: a wrong key at the top and one in a node type are refused."""
    for change in ({"max_worker": 3}, {"idle_timeout": 5}):
        with pytest.raises(jsonschema.ValidationError):
            prepared(aws | change)
    wrong = copy.deepcopy(aws)
    wrong["available_node_types"]["training"]["max_worker"] = 3
    with pytest.raises(jsonschema.ValidationError):
        prepared(wrong)
    with pytest.raises(ValueError, match="head_node_type"):
        prepared(aws | {"head_node_type": "nobody"})


def test_the_groups_are_what_they_say(aws: dict[str, Any]) -> None:
    """A head without CPUs, training on demand, generation on spot, both from zero; the limits add up."""
    types = aws["available_node_types"]
    assert set(types) == {"head", "training", "generation"}
    assert types["head"]["resources"] == {"CPU": 0}
    workers = [types["training"], types["generation"]]
    assert all(group["resources"]["GPU"] >= 1 and group["min_workers"] == 0 for group in workers)
    assert "InstanceMarketOptions" not in types["training"]["node_config"]
    assert types["generation"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert sum(group["max_workers"] for group in workers) == aws["max_workers"]
    for group in types.values():
        node = group["node_config"]
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"])


def test_ec2_knows_every_key_of_the_nodes(aws: dict[str, Any]) -> None:
    """Botocore's description of RunInstances accepts each node_config, so no key is misspelt."""
    from botocore.loaders import Loader
    from botocore.model import ServiceModel
    from botocore.validate import ParamValidator

    shape = ServiceModel(Loader().load_service_model("ec2", "service-2")).operation_model("RunInstances").input_shape
    for name, group in aws["available_node_types"].items():
        request = {"MinCount": 1, "MaxCount": 1, **group["node_config"]}
        report = ParamValidator().validate(request, shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"
