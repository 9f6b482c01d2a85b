"""Ship a version: plain weights, ONNX, a PEFT folder."""
