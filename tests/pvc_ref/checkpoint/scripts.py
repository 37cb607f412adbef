"""A few sentences in each of ten scripts, to train tokenizers on."""

from __future__ import annotations

SCRIPTS: dict[str, tuple[str, ...]] = {
    "Latin": (
        "The quick brown fox jumps over the lazy dog, and the dog does not care.",
        "Où est la forêt ? Der Straßenbahnfahrer hört Musik; año nuevo, vida nueva.",
        "In the second frame the red square moves to the left of the blue circle.",
    ),
    "Greek": ("Η γρήγορη καφετιά αλεπού πηδάει πάνω από το τεμπέλικο σκυλί.", "Το κόκκινο τετράγωνο είναι αριστερά."),
    "Cyrillic": ("Быстрая рыжая лиса прыгает через ленивую собаку.", "Красный квадрат движется налево, а синий — нет."),
    "Arabic": ("الثعلب البني السريع يقفز فوق الكلب الكسول.", "المربع الأحمر يتحرك إلى يسار الدائرة الزرقاء."),
    "Hebrew": ("השועל החום המהיר קופץ מעל הכלב העצלן.", "הריבוע האדום זז שמאלה מהעיגול הכחול."),
    "Devanagari": ("तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है।", "लाल वर्ग नीले वृत्त के बाईं ओर जाता है।"),
    "Thai": ("สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจ", "สี่เหลี่ยมสีแดงเคลื่อนไปทางซ้ายของวงกลมสีน้ำเงิน"),
    "Chinese": ("敏捷的棕色狐狸跳过懒狗，懒狗并不在意。", "第二帧里红色方块移到蓝色圆圈的左边。"),
    "Japanese": ("素早い茶色の狐はのろまな犬を飛び越える。", "赤い四角が青いマルの左へ動きます。"),
    "Korean": ("빠른 갈색 여우가 게으른 개를 뛰어넘는다.", "빨간 사각형이 파란 원의 왼쪽으로 움직인다."),
}
CORPUS = [sentence for sentences in SCRIPTS.values() for sentence in sentences]
