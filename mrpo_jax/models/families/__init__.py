# SPDX-License-Identifier: Apache-2.0
"""Model families: config.json and tensor names of each."""
