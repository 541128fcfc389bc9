# SPDX-License-Identifier: Apache-2.0
"""SIGTERM and Ctrl-C are heard after the step; a second Ctrl-C at once."""

import signal

import pytest

from mrpo_jax.runs.stop import Stop


@pytest.fixture(autouse=True)
def signals():
  """Handlers of before."""
  kept = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
  yield
  for number, handler in kept.items():
    signal.signal(number, handler)


def test_sigterm_stops_after_the_step():
  stop = Stop()
  assert not stop(1)
  signal.raise_signal(signal.SIGTERM)
  assert stop(2) and not stop.interrupted


def test_ctrl_c_stops_after_the_step_and_the_second_one_at_once(capfd):
  stop = Stop()
  with pytest.raises(KeyboardInterrupt), stop.interrupts():
    signal.raise_signal(signal.SIGINT)
    assert stop(1) and stop.interrupted
    assert "Ctrl-C again ends at once" in capfd.readouterr().err
    signal.raise_signal(signal.SIGINT)
  assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_command_in_the_background_hears_no_ctrl_c():
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  stop = Stop()
  with stop.interrupts():
    signal.raise_signal(signal.SIGINT)
  assert not stop(1) and not stop.interrupted
