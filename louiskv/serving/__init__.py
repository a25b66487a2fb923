"""An OpenAI-compatible server over `louiskv.engine`; needs the extra: pip install 'louiskv[serve]'."""
