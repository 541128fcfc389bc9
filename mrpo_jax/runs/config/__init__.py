# SPDX-License-Identifier: Apache-2.0
"""The config of a run: typed sections, read and checked; pydantic is here."""

from mrpo_jax.runs.config.bandit import BanditConfig as BanditConfig
from mrpo_jax.runs.config.config import RENAMED as RENAMED
from mrpo_jax.runs.config.config import Config as Config
from mrpo_jax.runs.config.config import load as load
from mrpo_jax.runs.config.config import read as read
from mrpo_jax.runs.config.config import renamed as renamed
from mrpo_jax.runs.config.config import say_renamed as say_renamed
from mrpo_jax.runs.config.config import values_of as values_of
from mrpo_jax.runs.config.config import with_defaults as with_defaults
from mrpo_jax.runs.config.diffusion import DiffusionConfig as DiffusionConfig
from mrpo_jax.runs.config.models import Folder as Folder
from mrpo_jax.runs.config.models import ModelSection as ModelSection
from mrpo_jax.runs.config.models import key_of as key_of
from mrpo_jax.runs.config.sections import BEST as BEST
from mrpo_jax.runs.config.sections import NewAdapter as NewAdapter
from mrpo_jax.runs.config.sources import is_loss as is_loss
