"""Token cache: what the trunk makes of every sample, kept in shards, so that it is computed once and never again."""
