package router

import "bytes"

// ibanLength is the length of an account number by country, from the SWIFT
// IBAN registry.
var ibanLength = map[[2]byte]int{}

func init() {
	for _, x := range []struct {
		n         int
		countries string
	}{
		{15, "NO"},
		{16, "BE"},
		{18, "DK FI FO GL NL SD FK"},
		{19, "MK SI"},
		{20, "AT BA EE KZ LT LU XK MN"},
		{21, "CH HR LI LV"},
		{22, "BG BH CR DE GB GE IE ME RS VA"},
		{23, "AE GI IL IQ TL OM SO"},
		{24, "AD CZ ES MD PK RO SA SE SK TN VG"},
		{25, "LY PT ST"},
		{26, "IS TR"},
		{27, "BI DJ FR GR IT MC MR SM"},
		{28, "AL AZ BY CY DO GT HU LB NI PL SV"},
		{29, "BR EG PS QA UA"},
		{30, "JO KW MU YE"},
		{31, "MT SC"},
		{32, "LC"},
		{33, "RU"},
	} {
		for c := range bytes.FieldsSeq([]byte(x.countries)) {
			ibanLength[[2]byte(c)] = x.n
		}
	}
}

// ibanAt returns the end of an IBAN that begins at i, or 0. Groups may be
// parted by one gap.
func ibanAt(s []byte, i int) int {
	if len(s)-i < 15 || bytesAre[s[i]]&isUpper == 0 || bytesAre[s[i+1]]&isUpper == 0 || bytesAre[s[i+2]]&isDigit == 0 {
		return 0
	}
	want := ibanLength[[2]byte{s[i], s[i+1]}]
	var a [34]byte
	n, j := 0, i
	for ; j < len(s) && n < want; j++ {
		if bytesAre[s[j]]&(isDigit|isUpper) == 0 {
			g := gap(s, j)
			if j += g; g == 0 || j >= len(s) || bytesAre[s[j]]&(isDigit|isUpper) == 0 {
				return 0
			}
		}
		a[n] = s[j]
		n++
	}
	if want == 0 || n < want || !ends(s, j) || !mod97(a[:n]) {
		return 0
	}
	return j
}

// mod97 is the check of ISO 7064 as ISO 13616 uses it: country and check
// digits move to the end, letters count from 10, the remainder is 1.
func mod97(a []byte) bool {
	r := 0
	for k := range a {
		c := a[(k+4)%len(a)]
		if c >= 'A' {
			r = (r*100 + int(c-'A') + 10) % 97
		} else {
			r = (r*10 + int(c-'0')) % 97
		}
	}
	return r == 1
}

type mark struct {
	prefix string
	least  int
	set    func(byte) bool
}

// tokens lists the credentials that carry a mark of their issuer. least is
// the number of bytes after the prefix; set says which they are.
var tokens = []mark{
	{"AKIA", 16, upperDigit},
	{"ASIA", 16, upperDigit}, // AWS
	{"ghp_", 36, alnum},
	{"gho_", 36, alnum},
	{"ghu_", 36, alnum},
	{"ghs_", 36, alnum},
	{"ghr_", 36, alnum}, // GitHub
	{"github_pat_", 60, word},
	{"glpat-", 20, word}, // GitLab
	{"sk-", 32, word},    // OpenAI, Anthropic (sk-ant-) and their relatives
	{"nvapi-", 40, word}, // NVIDIA
	{"hf_", 30, alnum},   // Hugging Face
	{"npm_", 36, alnum},  // npm
	{"AIza", 35, word},   // Google
	{"xoxb-", 20, word},
	{"xoxp-", 20, word}, // Slack
	{"xoxa-", 20, word},
	{"xoxr-", 20, word},
	{"xoxs-", 20, word},
	{"xapp-", 20, word},
	{"sk_live_", 20, alnum},
	{"rk_live_", 20, alnum}, // Stripe
	{"eyJ", 40, jwt},        // a JSON web token: base64url of {" with two dots
}

// marks holds tokens by the first byte of their prefix.
var marks = func() (t [256][]mark) {
	for _, m := range tokens {
		t[m.prefix[0]] = append(t[m.prefix[0]], m)
	}
	return t
}()

func upperDigit(c byte) bool { return bytesAre[c]&(isUpper|isDigit) != 0 }
func alnum(c byte) bool      { return bytesAre[c]&isAlnum != 0 }
func word(c byte) bool       { return alnum(c) || c == '-' || c == '_' }
func jwt(c byte) bool        { return word(c) || c == '.' }

// tokenAt returns the end of a credential that begins at i, or 0.
func tokenAt(s []byte, i int) int {
	for _, m := range marks[s[i]] {
		if len(s)-i < len(m.prefix)+m.least || string(s[i:i+len(m.prefix)]) != m.prefix {
			continue
		}
		if m.prefix == "eyJ" && i > 0 && jwt(s[i-1]) { // also keeps the scan linear
			continue
		}
		j := i + len(m.prefix)
		for j < len(s) && m.set(s[j]) {
			j++
		}
		if j-i-len(m.prefix) < m.least || m.prefix == "eyJ" && bytes.Count(s[i:j], []byte(".")) < 2 {
			continue
		}
		return j
	}
	return 0
}
