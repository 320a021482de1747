"""Information: mutual information learned from samples (`mine`, `estimator`), entropy in closed form (`entropy`), and the energy
that trades the two against each other (`energy`, Eq. 2)."""
