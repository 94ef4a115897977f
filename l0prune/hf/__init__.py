"""Cut models of transformers as folders: written for people who use transformers, read back into their class.

transformers itself is imported when a function here is called; without it, that says how to install it.
"""

from l0prune.hf.loading import from_pretrained
from l0prune.hf.registration import register, sentence_transformer
from l0prune.hf.saving import save_pretrained
from l0prune.hf.vocabulary import VocabularyCut, cut_vocabulary

__all__ = ["VocabularyCut", "cut_vocabulary", "from_pretrained", "register", "save_pretrained", "sentence_transformer"]
