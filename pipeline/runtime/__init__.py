"""Device, seeds, progress, parallel back ends: what every stage needs and no stage owns."""
