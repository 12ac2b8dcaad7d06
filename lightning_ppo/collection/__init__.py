"""Policy and environments make rollouts, in this process or in others."""
