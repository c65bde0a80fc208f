"""What a trained generator is worth: asked on unseen starts, beside baselines, and tested for copies."""
