"""From a scene to published detections."""
