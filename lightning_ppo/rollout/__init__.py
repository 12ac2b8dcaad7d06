"""The data of the algorithm: rollouts and minibatches, advantages, episode records."""
