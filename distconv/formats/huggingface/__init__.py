"""Hugging Face directories: safetensors or state dicts, `config.json`, side files, and PEFT adapters."""
