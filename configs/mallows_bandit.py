r"""MallowsPO's bandit: which losses collapse onto one arm of five.

MallowsPO, arXiv:2405.14953, its experiment on synthetic data.  Five arms with
random rewards; each of 16 pairs compares two of them.  A policy over the arms
is trained on the pairs by full-batch gradient descent.  At a small beta DPO
puts nearly all on one arm, not the best one; Mallows-phi with a narrow cubic
keeps four.

  mrpo train --config=configs/mallows_bandit.py --workdir=/tmp/bandit

Expected after 500,000 steps (policy over arms 1 to 5, its expected reward,
KL from the reference in nats):

  loss                     beta  policy                        reward  KL
  dpo                      0.05  .971 .012 .016 .000 .000      15.529  1.460
  phi_cubic, epsilon 0.1   0.05  .553 .193 .190 .064 .000      15.848  0.473
  phi_sigmoid              0.05  .991 .004 .005 .000 .000      15.509  1.551
  dpo                      0.1   .995 .002 .003 .000 .000      15.505  1.577
  phi_cubic, epsilon 0.1   0.1   .398 .233 .233 .136 .000      15.892  0.292
  phi_sigmoid              0.1   .906 .045 .046 .002 .000      15.590  1.225
  dpo                      0.5   .739 .121 .121 .020 .000      15.731  0.798
  phi_cubic, epsilon 0.1   0.5   .277 .249 .249 .224 .001      15.866  0.222
  phi_raw                  any   uniform                       12.896  0

With a wider cubic or the sigmoid, Mallows-phi collapses like DPO at a small
beta; without smoothing it never starts.  At beta 1 DPO keeps four arms too, at
reward 15.862.

Assumed: the reference is uniform, and so is the policy's start.  How the paper
fits its cubic is unverified, and its probabilities are not matched exactly.

Append `:debug` for 2,000 steps.
"""

from ml_collections import config_dict

from mrpo_jax import configs


def get_config(arg=""):
  arg = configs.parse_arg(arg, debug=False)
  c = config_dict.ConfigDict()
  c.steps = 2_000 if arg.debug else 500_000
  c.batch = 16  # all pairs: full-batch descent
  c.log_every = 100 if arg.debug else 5_000
  c.bandit = dict(
    rewards=(  # expected, of the arms 1 to 5; a draw of an arm gives
      15.5,  # 20 or 11, each with probability 0.5
      16.5,  # 30 or 3, likewise
      16.5,  # 18 or 15, likewise
      14.95,  # 15, or 10 with probability 0.01
      1.03,  # 1, or 4 with probability 0.01
    ),
    winners=(3, 2, 2, 1, 3, 1, 1, 1, 4, 2, 2, 2, 1, 3, 3, 4),
    losers=(5, 5, 5, 2, 5, 5, 4, 5, 5, 4, 1, 5, 3, 5, 4, 2),
    lr=5e-3,
    average=30,  # the policy is the mean of the last 30 steps
    betas=(0.05, 0.1, 0.5, 1.0),
    links=dict(  # each is trained at each beta; keywords of losses.build
      names=(
        "dpo",
        "phi_sigmoid",
        "phi_cubic",
        "phi_cubic_half",
        "phi_cubic_wide",
        "phi_raw",
      ),
      dpo=dict(name="dpo"),
      phi_sigmoid=dict(name="mallows_phi", phi=0.05, smoothing="sigmoid"),
      phi_cubic=cubic(0.1),
      phi_cubic_half=cubic(0.5),
      phi_cubic_wide=cubic(5.991464547),  # -2 log phi
      phi_raw=dict(name="mallows_phi", phi=0.05, smoothing="none"),
    ),
  )
  return c


def cubic(epsilon):
  return dict(name="mallows_phi", phi=0.05, smoothing="cubic", epsilon=epsilon)
