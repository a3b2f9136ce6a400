"""The messages between caller and worker: each field arrives, buffers stay apart, other versions are refused."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pickle

import numpy
import pytest

from synapse_runtime import __version__
from synapse_runtime.core.around import Around, Seed
from synapse_runtime.core.assertions import FailureRecorder
from synapse_runtime.core.coverage_support import CoverageCollector
from synapse_runtime.core.execution import ActionCall, ActionRun
from synapse_runtime.core.log_capture import CapturedWarning, UnhandledError
from synapse_runtime.core.output_capture import Captured
from synapse_runtime.core.remote_exceptions import encode_exception
from synapse_runtime.decorators import action
from synapse_runtime.errors import ClusterError, ExecutionError
from synapse_runtime.events import Event
from synapse_runtime.executors import protocol
from synapse_runtime.executors.protocol import VERSION_LINE, VersionMismatch, decode_request, decode_run, encode_call


@action
def echo(params, context):
    return params


def encode_run(run: ActionRun, **options) -> bytes:
    return protocol.encode_run(run, recorder=FailureRecorder(), collector=CoverageCollector(), **options)


def test_call_arrives_with_every_field():
    call = ActionCall(
        action=echo,
        name="echo",
        params={"number": 1},
        env={"A": "1"},
        job_id="job-1",
        timeout=2.5,
        cwd="/",
        config_path="/plugin/config.yaml",
        category="neural_net",
        language="ko",
        around=(Around(contextlib.suppress, (KeyError,)),),
        seed=Seed(7, ("numpy",)),
    )
    unset = [field.name for field in dataclasses.fields(call) if getattr(call, field.name) == field.default]
    assert unset == ["import_root", "sends_test_setup"]  # which the worker need not know
    request = decode_request(encode_call(call).message(shares_filesystem=False))
    assert (request.name, request.job_id, request.timeout, request.shares_filesystem) == ("echo", "job-1", 2.5, False)
    assert request.read_call() == call


def test_run_arrives_with_every_field():
    record = logging.makeLogRecord({"msg": "logged", "levelno": logging.INFO})
    captured = Captured(
        stdout="out",
        stderr="err",
        records=[record],
        warnings=[CapturedWarning(UserWarning("careful"), UserWarning, "file.py", 3, "careful_module")],
        unhandled=[UnhandledError(encode_exception(ValueError("unseen")), "Thread-1", "in it", in_thread=True)],
        already_printed={0},
        output_positions=[(1, "stdout", 3)],
    )
    events = [Event("log", "saved", {"path": "a"}, level="info", step="train", file="train.py")]
    run = ActionRun("echo", {"a": 1}, None, events, captured, 1.5, "task", "job-1", 7, "host", "node")
    copy = decode_run(encode_run(run))
    for field in dataclasses.fields(run):
        if field.name != "captured":
            assert getattr(copy, field.name) == getattr(run, field.name), field.name
    assert copy.captured is not None
    for field in dataclasses.fields(captured):
        if field.name not in ("records", "warnings"):
            assert getattr(copy.captured, field.name) == getattr(captured, field.name), field.name
    assert [item.getMessage() for item in copy.records] == ["logged"]
    assert [(str(item.message), *item[1:]) for item in copy.warnings] == [
        ("careful", UserWarning, "file.py", 3, "careful_module")
    ]


def test_run_without_captured_output_has_none():
    assert decode_run(encode_run(ActionRun("echo", 1))).captured is None


def test_error_arrives_with_its_cause():
    error = ExecutionError("echo failed")
    error.__cause__ = KeyError("missing")
    copy = decode_run(encode_run(ActionRun("echo", error=error, duration=1.0)))
    assert type(copy.error) is ExecutionError
    assert repr(copy.error.__cause__) == "KeyError('missing')"


@pytest.mark.parametrize("is_out_of_band", [True, False])
def test_large_arrays_of_a_result_arrive_read_only(is_out_of_band):
    run = ActionRun("echo", {"large": numpy.arange(100_000), "small": numpy.arange(3), "text": "x" * 200_000})
    buffers: list[pickle.PickleBuffer] = []
    data = encode_run(run, out_of_band=buffers if is_out_of_band else None)
    assert bool(buffers) is is_out_of_band
    assert (len(data) < 100_000) is is_out_of_band
    result = decode_run(data, buffers=[bytes(buffer.raw()) for buffer in buffers]).result
    assert (result["large"] == numpy.arange(100_000)).all()
    assert (result["large"].flags.writeable, result["small"].flags.writeable) == (False, True)
    assert len(result["text"]) == 200_000


@pytest.mark.parametrize("is_out_of_band", [True, False])
def test_large_arrays_of_params_arrive_writable(is_out_of_band):
    call = ActionCall(action=echo, name="echo", params={"large": numpy.zeros(100_000)})
    encoded = encode_call(call, out_of_band=is_out_of_band)
    assert bool(encoded.buffers) is is_out_of_band
    params = decode_request(encoded.message(), [bytes(buffer.raw()) for buffer in encoded.buffers]).read_call().params
    params["large"][0] = 1
    assert not call.params["large"][0]


@pytest.mark.parametrize("line", [b"synapse 99 0.1.0\n", b"synapse 1 99.0\n"])
def test_message_of_another_version_is_refused_by_both_sides(line):
    request = encode_call(ActionCall(action=echo, name="echo")).message()
    with pytest.raises(VersionMismatch) as refused:
        decode_request(request.replace(VERSION_LINE, line))
    assert [refused.value.protocol, refused.value.version] == line.decode().split()[1:]
    with pytest.raises(ClusterError, match=rf"version .* \(protocol .*\), this process has {__version__} "):
        decode_run(line)


@pytest.mark.parametrize("data", [VERSION_LINE, b"", b"\x80\x05N.", b"synapse\n"])
def test_data_that_is_not_a_message_is_refused(data):
    with pytest.raises(ClusterError, match="install the same version on both"):
        decode_run(data)
