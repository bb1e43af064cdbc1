package words

import (
	"slices"
	"testing"
)

func TestSplit(t *testing.T) {
	tests := []struct {
		name string
		text string
		want []string
	}{
		{"case and punctuation", "Hello, WORLD! (a-b_c.d)", []string{"hello", "world", "a", "b", "c", "d"}},
		{"German", "Die Größe der Häuser in DÜSSELDORF: STRASSE, Straße, GROẞ", []string{"die", "grosse", "der", "hauser", "in", "dusseldorf", "strasse", "strasse", "gross"}},
		{"French", "L'été, c’est l’œuvre; aujourd'hui", []string{"l", "ete", "c", "est", "l", "oeuvre", "aujourd", "hui"}},
		{"Italian", "dell'arte", []string{"dell", "arte"}},
		{"English apostrophes", "don't Anna's we're o'clock O'Brien 'quoted' rock'n'roll", []string{"dont", "annas", "were", "o", "clock", "o", "brien", "quoted", "rockn", "roll"}},
		{"Nordic and Polish", "Smørrebrød Łódź þing", []string{"smorrebrod", "lodz", "thing"}},
		{"Turkish", "İstanbul ISPARTA ılık", []string{"istanbul", "isparta", "ilik"}},
		{"Vietnamese", "Tiếng Việt", []string{"tieng", "viet"}},
		{"Russian", "Ёлка и ЙОД, м'яч", []string{"елка", "и", "йод", "мяч"}},
		{"Ukrainian", "Їжак", []string{"їжак"}},
		{"Greek", "Ὀδυσσεύς ΟΔΥΣΣΕΥΣ", []string{"οδυσσευσ", "οδυσσευσ"}},
		{"Arabic", "كِتَابٌ أحمد إلى مـدرسة", []string{"كتاب", "احمد", "الي", "مدرسه"}},
		{"Arabic digits", "٢٠٢٤ ۲۰۲۴", []string{"2024", "2024"}},
		{"Hebrew", "שָׁלוֹם צה״ל", []string{"שלום", "צהל"}},
		{"Hindi keeps its vowels", "हिन्दी की", []string{"हिन्दी", "की"}},
		{"Chinese", "我们在北京。", []string{"我", "们", "在", "北", "京"}},
		{"Japanese", "東京タワーへ行く ｶﾞﾗｽ", []string{"東", "京", "タ", "ワ", "ー", "へ", "行", "く", "ガ", "ラ", "ス"}},
		{"Japanese voiced kana are other letters", "か が", []string{"か", "が"}},
		{"Korean", "한국어를", []string{"한국어를"}},
		{"Thai", "ที่นี่", []string{"ที่", "นี่"}},
		{"scripts next to each other", "東京tower1", []string{"東", "京", "tower1"}},
		{"emoji", "ok👍🏽 👨‍👩‍👧 🇩🇪", []string{"ok", "👍", "👨", "👩", "👧", "🇩", "🇪"}},
		{"compatibility forms", "ﬁne Ａｂｃ １２ x² №5", []string{"fine", "abc", "12", "x2", "5"}},
		{"nothing", " \n\t—…!? \u0301", nil},
		{"broken text", "a\xffb\xc3", []string{"a", "b"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Split(tt.text); !slices.Equal(got, tt.want) {
				t.Errorf("Split(%q) =\n %q, want\n %q", tt.text, got, tt.want)
			}
		})
	}
}
