# SPDX-License-Identifier: Apache-2.0
"""Online: rewards of what a policy says, and answers that are rewritten."""
