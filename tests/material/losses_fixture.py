# SPDX-License-Identifier: Apache-2.0
"""Four pairs of responses over a vocabulary of five, in float64 NumPy.

Four pairs, no random numbers: the logits are sines, the labels squares modulo
5.  Position t of a response counts where t < length; the logits at t predict
the label at t.  What `test_fixture.py` expects of them are values of official
code where marked, else of two independent programs.
"""

import types

import jax.numpy as jnp
import numpy as np

VOCAB = 5
PROMPT = 2  # tokens before each response

_b, _c, _t, _v = np.ogrid[:4, :2, :6, :VOCAB]
policy_logit_BCTV = 1.5 * np.sin(
  1.0 + 0.7 * _b + 1.9 * _c + 1.3 * _t + 2.1 * _v
)
ref_logit_BCTV = 1.5 * np.sin(0.9 + 0.3 * _b + 2.1 * _c + 1.2 * _t + 2.3 * _v)
label_BCT = ((2 * _b + 3 * _c + _t * _t) % VOCAB)[..., 0]
length_BC = np.array([[5, 4], [3, 6], [6, 6], [2, 3]])
shorter_BC = np.repeat(length_BC.min(axis=1, keepdims=True), 2, axis=1)
index_BCT = np.broadcast_to(np.arange(6), label_BCT.shape)
mask_BCT = index_BCT < length_BC[..., None]
# The tokens in which the responses of a pair differ, for `bridged`.
differs_BCT = mask_BCT & ((index_BCT == 1) | (index_BCT == 3))


def _log_softmax(logit):
  return logit - np.log(np.exp(logit).sum(axis=-1, keepdims=True))


def _of_label(logp_BCTV):
  return np.take_along_axis(logp_BCTV, label_BCT[..., None], -1)[..., 0]


policy_BCTV = _log_softmax(policy_logit_BCTV)
ref_BCTV = _log_softmax(ref_logit_BCTV)

# Per token; nats.
policy_logp_BCT = _of_label(policy_BCTV)
ref_logp_BCT = _of_label(ref_BCTV)
entropy_BCT = -(np.exp(ref_BCTV) * ref_BCTV).sum(axis=-1)  # of the reference
kl_BCT = (np.exp(ref_BCTV) * (ref_BCTV - policy_BCTV)).sum(axis=-1)
log_square_BCT = np.log(np.exp(2 * policy_BCTV).sum(axis=-1))  # of the policy


def total(value_BCT):
  """The sum over the tokens that count."""
  return (value_BCT * mask_BCT).sum(axis=-1)


# Per response: sums, and means per token that counts.
policy_logp_BC = total(policy_logp_BCT)
ref_logp_BC = total(ref_logp_BCT)
logratio_BC = policy_logp_BC - ref_logp_BC
policy_mean_logp_BC = policy_logp_BC / length_BC
ref_mean_logp_BC = ref_logp_BC / length_BC
mean_logratio_BC = logratio_BC / length_BC
entropy_BC = total(entropy_BCT)
kl_BC = total(kl_BCT)
mean_excess_BC = total(policy_logp_BCT - log_square_BCT) / length_BC


def arrays(dtype):
  """All of the above with a house name, as JAX arrays.

  Floating ones in `dtype`, places and lengths too; masks and labels as is.
  """
  found = types.SimpleNamespace()
  for name, array in globals().items():
    if name[0] != "_" and isinstance(array, np.ndarray):
      kept = array.dtype == bool or name == "label_BCT"
      setattr(found, name, jnp.asarray(array, None if kept else dtype))
  return found


def sigmoid(x):
  return 1.0 / (1.0 + np.exp(-np.asarray(x, np.float64)))


def logistic(x):
  """-log sigmoid(x), the naive formula in float64."""
  return np.log1p(np.exp(-np.asarray(x, np.float64)))
