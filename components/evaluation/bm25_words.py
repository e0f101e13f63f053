"""The words that BM25 counts: how a text is cut into them, and which stemmer fits the documents' language.

Words are runs of letters, digits and marks, in small letters, of any length: the B of "hepatitis B" and the r of "ls -r" are words. Scripts
that put no spaces between words are cut into overlapping pairs of characters, as Lucene's CJKAnalyzer does. Stemmers are Snowball's.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from components.evaluation.config import NO_STEMMER

if TYPE_CHECKING:
    from bm25s.tokenization import Tokenized

# Python's \w holds no combining marks, so accents and vowel signs would cut the words of Hindi, Thai or Arabic in pieces.
_MARKS = "\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0670\u0900-\u0963\u0966-\u0dff\u0e31-\u0e4e\u0eb1-\u0ebc\u200c\u200d"
_WORD = re.compile(rf"[\w{_MARKS}]+")
# Kana, Han and Hangul; Thai, Lao, Burmese and Khmer.
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af\u0e00-\u0eff\u1000-\u109f\u1780-\u17d2]+")
# Frequent words that a language does not share with its neighbours: "for" is English, Danish and Norwegian, "se" Finnish and Spanish.
_FUNCTION_WORDS = {
    "english": "the of and to with by from or are this that which be has not",
    "german": "der und den das von zu mit ist dem ein eine auf nicht für des sich werden oder bei wird",
    "dutch": "het een van zijn voor niet aan ook wordt naar bij deze door uit worden",
    "french": "les des et du est dans pour une qui sur aux par avec pas sont cette ou être",
    "spanish": "los las y con el su más pero una sus este",
    "portuguese": "os um uma com não ao são dos mais pelo pela foi também ou à das em",
    "italian": "il di che della per gli è nel dei sono delle alla anche più dal",
    "romanian": "și în cu pe este din pentru care sau nu ale fi prin sunt",
    "swedish": "och att är för inte till från ett vid",
    "danish": "af at efter bliver blev mellem nogle mig sig hvad uden",
    "norwegian": "av å etter blir ble mellom noen meg seg hva uten",
    "finnish": "että oli mutta myös kun ovat tai joka ole sekä hän hänen",
    "hungarian": "az és hogy nem egy is ez vagy meg csak mint volt",
    "polish": "w się nie jest oraz przez dla są że lub od które",
    "czech": "že který jsou podle také při byl která nebo není však pro ve",
    "russian": "что как это его для из был они её если или также при было",  # noqa: RUF001
    "greek": "και το του της η την των να με για από στο οι είναι",  # noqa: RUF001
    "turkish": "ve bir bu için ile olarak çok daha olan gibi veya",
    "indonesian": "yang dan untuk dengan dari ini pada dalam tidak adalah akan atau",
}
_SAMPLE, _CHARACTERS = 2000, 2000  # documents that are looked at for their language, and characters of each
_FEWEST = 50  # words below which nothing is told
_SHARE = 0.03  # of all words have to be function words of the language
_LEAD = 4.0  # times as many as of the next one


def told_language(texts: Sequence[str]) -> str | None:
    """The language of the documents `texts` by its function words, as Snowball names it; None where it is not clear.

    Clear means: of a sample's words at least 3 % belong to the language's list, and four times as many as to any other list. Lists of
    names, mixed languages and languages without a list stay untold.
    """
    sample = texts[:: max(1, len(texts) // _SAMPLE)]
    counts = Counter(word for text in sample for word in words_of(text[:_CHARACTERS]))
    total = counts.total()
    found = sorted((sum(counts[word] for word in words.split()), language) for language, words in _FUNCTION_WORDS.items())
    (second, _), (most, language) = found[-2:]
    return language if total >= _FEWEST and most >= _SHARE * total and most >= _LEAD * second else None


def words_of(text: str) -> list[str]:
    """The words of a text in their order, unstemmed."""
    if not text.isascii():
        text = _UNSPACED.sub(_pairs, unicodedata.normalize("NFKC", text))
    return _WORD.findall(text.lower())


def _pairs(found: re.Match[str]) -> str:
    run = found[0]
    return f" {' '.join(run[i : i + 2] for i in range(max(1, len(run) - 1)))} "


def stem_function(stemmer: str) -> Callable[[str], str]:
    """The stem of a word by Snowball's `stemmer`; with `none` the word itself. What is returned serves one thread."""
    if stemmer == NO_STEMMER:
        return str
    import Stemmer

    made: Any = Stemmer.Stemmer(stemmer)
    stem: Callable[[str], str] = made.stemWord
    return stem


def numbered(texts: Iterable[str], stem: Callable[[str], str]) -> Tokenized:
    """The ids of the stems of each text, and each stem's id, as bm25s indexes them."""
    from bm25s.tokenization import Tokenized

    vocabulary, known = dict[str, int](), dict[str, int]()
    ids = []
    for text in texts:
        row = []
        for word in words_of(text):
            if word not in known:
                known[word] = vocabulary.setdefault(stem(word), len(vocabulary))
            row.append(known[word])
        ids.append(row)
    return Tokenized(ids=ids, vocab=vocabulary)
