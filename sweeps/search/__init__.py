"""Which configurations are tried: Optuna's study, as Ray Tune drives it."""
