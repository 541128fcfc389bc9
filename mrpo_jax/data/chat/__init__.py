# SPDX-License-Identifier: Apache-2.0
"""Chats: what messages hold beside a text, and what a template makes of it."""
