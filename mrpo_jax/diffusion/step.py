# SPDX-License-Identifier: Apache-2.0
"""Training steps of a denoiser: on images alone, and on pairs of them.

Every loss of pairs in `losses` is one of denoisers, too, where

    log p  =  -nats / 2 * error

stands for the log-probability of an image: Diffusion-DPO is `dpo`, and IPO is
`ipo`.  With DPO's beta, beta * nats is the beta of `losses.diffusion_dpo` and
of the released code.  Equation 14 of the paper (arXiv:2311.12908) has sums over
the N numbers of an image and no 1/2: its T omega is nats / (2 N).
"""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
import optax

from mrpo_jax import losses
from mrpo_jax.diffusion.denoiser import DenoiserConfig
from mrpo_jax.diffusion.errors import draws, errors, fixed_draws, mean_errors
from mrpo_jax.errors import InputError
from mrpo_jax.losses.weighting import normalised_weight


@flax.struct.dataclass
class ImageBatch:
  """A batch to denoise."""

  image_BHWX: jax.Array
  class_B: jax.Array  # the number of classes stands for none


@flax.struct.dataclass
class PairBatch:
  """A batch of preferences.

  Errors of references are there where they were scored beforehand, in the
  units of the policy's prediction: under the draw of this step, and their
  means over all draws of the pair.
  """

  image_BCHWX: jax.Array  # chosen, rejected
  class_B: jax.Array
  pair_B: jax.Array  # the pair's place in its data
  draw_B: jax.Array  # which of its fixed draws this step takes
  ref_error_BCK: jax.Array | None = None
  mean_ref_error_BCK: jax.Array | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class PairObjective:
  """What a step on pairs minimises; static.

  Raises:
    InputError: a loss that asks for what images do not have, or whose mixture
      needs scored references.
    ValueError: a loss that these references do not fit, by their number.
  """

  policy: DenoiserConfig
  references: tuple[DenoiserConfig, ...]
  method: losses.Method
  nats: float  # of one unit of error; see above
  draws: int = 0  # fixed ones of each pair; 0: new ones in every step
  seed: int = 0  # of fixed draws

  def __post_init__(self):
    needed = self.method.needs - {*self.known(1)}
    if needed:
      needed = ", ".join(sorted(needed))
      raise InputError(
        f"loss {self.method.name!r} needs {needed}, which pairs of images do "
        "not have"
      )
    method, name = self.method, self.method.name
    if method.tokens is not None or method.of_rewards:
      raise InputError(
        f"loss {name!r} is not one of pairs of log-probabilities"
      )
    if method.token_weight is not None:
      raise InputError(f"loss {name!r} weighs tokens, which images do not have")
    if method.measures or method.learns:
      raise InputError(
        f"loss {name!r} has weights that are measured on held-out pairs, which "
        "is done for texts alone; name other weights"
      )
    mixing = method.mixing
    if self.draws and (mixing.official_weights or mixing.betas):
      raise InputError(
        f"loss {name!r}: official_weights, and betas of each reference, are "
        "not taken with fixed draws, whose noise is taken off by the weights "
        "of the mixture"
      )
    K = len(self.references)
    if not self.draws and K > 1 and not is_linear(self.method.mixing, K):
      raise InputError(
        f"loss {self.method.name!r} mixes {K} references by what is not linear "
        "in their errors, and so is biased under a single draw: score them "
        "under fixed draws, or mix by the geometric mean, without clipping, by "
        "weights that do not depend on the pair"
      )
    self._trace()

  def _trace(self):
    """Has the loss refuse now what it refuses of K references."""
    logp_BC = jnp.zeros((2, 2))
    ref_BCK = jnp.zeros((2, 2, len(self.references)))
    given = (logp_BC, ref_BCK) if self.references else (logp_BC,)
    method = functools.partial(self.method, **self.known(2))
    jax.eval_shape(method, *given)

  def known(self, count):
    """Figures of that many pairs that the method is called with.

    Of the supervised loss the length, by which it takes a mean: an image is
    one thing.
    """
    return {"length_BC": jnp.ones((count, 2))} if self.method.supervised else {}

  def logps(self, error):
    return -0.5 * self.nats * error


def is_linear(mixing, K):
  """Is a methods.Mixing of K references linear in their log-probabilities?

  So is the geometric mean without clipping, and one loss for each reference,
  whose weights are the same whatever the references say.
  """
  if mixing.epsilon_max is not None or mixing.p not in (None, 0):
    return False
  state, even = mixing.init(K), jnp.zeros((1, 2, K))
  uneven = jnp.arange(2.0 * K).reshape(1, 2, K) ** 2
  weights = [mixing.weights(state, ref_BCK) for ref_BCK in (even, uneven)]
  return bool(jnp.array_equal(*weights))


def denoising_step(state, batch, *, config, transformation, without_class=0.1):
  """(state, metrics) after a step of supervised training.

  Args:
    state: TrainState, donated by the caller's jit.
    batch: ImageBatch.
    config: DenoiserConfig, static.
    transformation: optax transformation, static.
    without_class: share of the images whose class is not told, so that there
      is something to be guided away from.
  """
  key = jax.random.fold_in(jax.random.key(state.seed), state.step)
  draw_key, class_key = jax.random.split(key)
  B = batch.class_B.shape[0]
  drawn = draws(config, draw_key, B)
  uniform_B = jax.random.uniform(class_key, (B,), jnp.float32)
  hidden_B = uniform_B < without_class
  class_B = jnp.where(hidden_B, config.classes, batch.class_B)

  def loss_of(params):
    error_BC = errors(config, params, batch.image_BHWX[:, None], class_B, drawn)
    return jnp.mean(error_BC)

  loss, gradient = jax.value_and_grad(loss_of)(state.params)
  state = updated(state, gradient, transformation)
  metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradient)}
  return state, metrics


def preference_step(state, references, batch, *, objective, transformation):
  """(state, metrics) after a step on pairs.

  Args:
    state: TrainState, donated by the caller's jit.
    references: tuple of K parameter trees; not read where they were scored,
      with draws that are fixed.
    batch: PairBatch.
    objective: PairObjective, static.
    transformation: optax transformation, static.
  """
  config, method = objective.policy, objective.method
  if objective.draws:
    drawn = fixed_draws(config, objective.seed, batch.pair_B, batch.draw_B)
  else:
    key = jax.random.fold_in(jax.random.key(state.seed), state.step)
    drawn = draws(config, key, batch.class_B.shape[0])
  ref_BCK, mean_BCK = _reference_logps(objective, references, batch, drawn)

  def loss_of(params):
    error_BC = errors(config, params, batch.image_BCHWX, batch.class_B, drawn)
    loss_B = pair_losses(
      objective, state.method_state, error_BC, ref_BCK, mean_BCK
    )
    return jnp.mean(loss_B), error_BC

  (loss, error_BC), gradient = jax.value_and_grad(loss_of, has_aux=True)(
    state.params
  )
  metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradient)}
  metrics |= {
    name: jnp.mean(value_B)
    for name, value_B in figures(objective, error_BC, ref_BCK).items()
  }
  policy_BC = _without_draw(
    objective, state.method_state, error_BC, ref_BCK, mean_BCK
  )
  method_state = method.update(
    state.method_state, policy_BC, mean_BCK, **objective.known(len(policy_BC))
  )
  state = updated(state, gradient, transformation)
  return state.replace(method_state=method_state), metrics


def updated(state, gradient, transformation):
  """The state after a step of the optimizer."""
  updates, opt_state = transformation.update(
    gradient, state.opt_state, state.params
  )
  params = optax.apply_updates(state.params, updates)
  return state.replace(step=state.step + 1, params=params, opt_state=opt_state)


def pair_losses(objective, method_state, error_BC, ref_BCK, mean_BCK):
  """loss_B of pairs, by the errors of this draw.

  A mixture that is not linear is taken of the references' means over all
  draws, and compared with the policy `_without_draw`.

  Args:
    objective: PairObjective.
    method_state: see `Method.init`.
    error_BC: of the policy.
    ref_BCK: log-probabilities under this draw, nats; None without references.
    mean_BCK: their means over the pair's draws; the same where draws are new.
  """
  logp_BC = _without_draw(objective, method_state, error_BC, ref_BCK, mean_BCK)
  known = objective.known(len(logp_BC))
  return objective.method(logp_BC, mean_BCK, state=method_state, **known)


def _without_draw(objective, method_state, error_BC, ref_BCK, mean_BCK):
  """The policy's logp_BC, without what a fixed draw does to the references.

  That is the mean by their weights of ref_BCK - mean_BCK.  Over all draws of a
  pair it adds up to zero; without it the noise of the draw would stand in the
  policy alone.
  """
  logp_BC = objective.logps(error_BC)
  if mean_BCK is None or not objective.draws:
    return logp_BC
  weight = objective.method.mixing.weights(method_state, mean_BCK)
  weight_BK = normalised_weight(weight, mean_BCK)
  return logp_BC - jnp.sum(weight_BK[:, None] * (ref_BCK - mean_BCK), axis=-1)


def _reference_logps(objective, references, batch, drawn):
  """(ref_BCK under this draw, their means over draws); (None, None) of none."""
  if not objective.references:
    return None, None
  if objective.draws:
    scored = batch.ref_error_BCK, batch.mean_ref_error_BCK
    return tuple(map(objective.logps, scored))
  error_BCK = jnp.stack(
    [
      errors(
        config,
        params,
        batch.image_BCHWX,
        batch.class_B,
        drawn,
        of=objective.policy.prediction,
      )
      for config, params in zip(objective.references, references, strict=True)
    ],
    axis=-1,
  )
  ref_BCK = jax.lax.stop_gradient(objective.logps(error_BCK))
  return ref_BCK, ref_BCK


def figures(objective, error_BC, ref_BCK):
  """dict of value_B: rewards against reference 0, and the errors themselves.

  Of the chosen and of the rejected image: a margin also grows where both errors
  rise, that of the rejected one faster.
  """
  found = {"error/chosen": error_BC[:, 0], "error/rejected": error_BC[:, 1]}
  if ref_BCK is None:
    return found
  beta, logp_BC = objective.method.beta, objective.logps(error_BC)
  found |= losses.preference_metrics(logp_BC, ref_BCK[..., 0], beta=beta)
  ref_error_BC = ref_BCK[..., 0] / objective.logps(1.0)
  for choice, name in enumerate(("chosen", "rejected")):
    change_B = error_BC[:, choice] - ref_error_BC[:, choice]
    found[f"error_change/{name}"] = change_B
  return found


def scored(objective, config, params, batch):
  """error_MBC of a reference under the fixed draws of each pair.

  Args:
    objective: PairObjective.
    config: DenoiserConfig of the reference.
    params: its parameters.
    batch: PairBatch, whose `draw_B` counts for nothing.
  """

  def drawn_of(number):
    draw_B = jnp.full_like(batch.pair_B, number)
    return fixed_draws(objective.policy, objective.seed, batch.pair_B, draw_B)

  error_MBC, _ = mean_errors(
    *(config, params, batch.image_BCHWX, batch.class_B),
    *(drawn_of, objective.draws),
    of=objective.policy.prediction,
  )
  return error_MBC
