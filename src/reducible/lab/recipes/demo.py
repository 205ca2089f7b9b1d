"""The demo: uniform selection beside RHO-LOSS, on real images with wrong labels among them."""

from reducible.lab.recipe import Recipe

# A clean holdout teaches more confidence than labels of which one in ten is wrong allow: the
# checkpoint of lowest loss on the train set is then an early, poor one. A little smoothing mends
# it. Chosen on seeds 101 to 105; results are reported on others.
_SMOOTHING = 0.02

DEMO = (
    Recipe(name="demo/uniform", selector="uniform"),
    Recipe(name="demo/rho", selector="rho", irreducible_smoothing=_SMOOTHING),
    Recipe(
        name="demo/rho-noisy-holdout",
        selector="rho",
        holdout_noise=0.1,
        irreducible_smoothing=_SMOOTHING,
    ),
)
