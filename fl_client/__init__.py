"""The device: stores, training of a cohort, and the Flower ClientApp."""
