"""The demo: uniform selection beside RHO-LOSS, on real images with wrong labels among them."""

from reducible.run import Recipe

DEMO = (
    Recipe(name="demo/uniform", selector="uniform"),
    Recipe(name="demo/rho", selector="rho"),
    Recipe(name="demo/rho-noisy-holdout", selector="rho", holdout_noise=0.1),
)
