"""Encoders as files that onnxruntime and OpenVINO run, checked against the model when they are written."""
