"""LightningModules as users write them: they import nothing of the rest, and show how a model of your own is plugged in."""
