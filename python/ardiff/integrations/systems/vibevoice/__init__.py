"""The codec of VibeVoice in streaming use."""
