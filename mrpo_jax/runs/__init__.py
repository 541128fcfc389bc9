# SPDX-License-Identifier: Apache-2.0
"""Runs: from a config to a finished run; the only room that parses one."""
