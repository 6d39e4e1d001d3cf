"""Speed: measured in live workers, in interleaved rounds, as ratios with confidence intervals."""
