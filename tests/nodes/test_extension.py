"""Groups of nodes are loaded one by one: what is wrong with one is logged, and the others are there."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest

NAME = "diagdistill_pack.nodes.extension"


@pytest.fixture
def loaded(monkeypatch, caplog):
    """(groups that fail) -> the nodes ComfyUI gets. A group's stand-in has one node, named after it."""
    api = ModuleType("comfy_api.latest")
    api.ComfyExtension = object
    monkeypatch.setitem(sys.modules, "comfy_api", ModuleType("comfy_api"))
    monkeypatch.setitem(sys.modules, "comfy_api.latest", api)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    extension = importlib.import_module(NAME)

    def run(*failing: str, routes=lambda: None) -> list[str]:
        def import_module(name: str, package: str) -> SimpleNamespace:
            assert package == "diagdistill_pack.nodes"
            group = name.removeprefix(".")
            if group in failing:
                raise ImportError(f"{group} needs what is not there")
            return SimpleNamespace(NODES=[group], register=routes)

        monkeypatch.setattr(extension, "importlib", SimpleNamespace(import_module=import_module))
        with caplog.at_level(logging.INFO, logger=NAME):
            return asyncio.run(extension.DiagDistillExtension().get_node_list())

    run.groups = list(extension.GROUPS)
    yield run
    sys.modules.pop(NAME, None)


def test_all_groups_are_loaded_in_order_and_the_routes_once(loaded, caplog):
    registered = []
    assert loaded(routes=lambda: registered.append(1)) == loaded.groups
    assert registered == [1] and caplog.records == []


@pytest.mark.parametrize("broken", ["model", "sampler", "decode"])
def test_a_group_that_fails_takes_no_other_with_it_and_is_logged(loaded, caplog, broken):
    assert loaded(broken) == [group for group in loaded.groups if group != broken]
    [record] = caplog.records
    assert record.levelno == logging.ERROR and f"{broken}.py" in record.getMessage()
    assert f"{broken} needs what is not there" in str(record.exc_info[1])  # with its traceback


def test_the_nodes_work_without_the_routes(loaded, caplog):
    def broken() -> None:
        raise RuntimeError("no server")

    assert loaded(routes=broken) == loaded.groups
    assert loaded("routes") == loaded.groups
    assert [("routes" in record.getMessage()) for record in caplog.records] == [True, True]
