"""model and encoded examples -> likelihoods, answers and gradient norms of each."""
