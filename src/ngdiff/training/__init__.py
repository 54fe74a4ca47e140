"""settings and examples -> the loop: UnlearningTrainer, its checks, its progress."""
