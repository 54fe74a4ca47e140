"""model name -> a clean model; model and batch -> what the losses look at; a model -> its files."""
