"""Networks in ONNX files as plain PyTorch graphs that attacks and certificates understand."""
