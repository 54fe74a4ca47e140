"""model name -> a clean model; model and batch -> log-probabilities and activations; its parameters."""
