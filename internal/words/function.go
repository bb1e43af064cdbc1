package words

import "strings"

// Function words of some languages, folded: they hold sentences together and say nothing about what a question is
// after. A language's list counts only in a question that is written in it: German "die" is no English one.
var functionWords = [...]map[string]bool{
	set(`a about after again all also am an and any are as at be because been before being both but by can could did do
		does doing done during each ever few for from further had has have having he her here hers herself him himself his how
		i if in into is it its itself just let like me more most much must my myself no nor not now of off on once one only or
		other our ours out over own really s same shall she should so some such t than that the their theirs them themselves
		then there these they thing this those through to too under until up upon us very was we were what when where which
		while who whom whose why will with would yes yet you your yours yourself im ive id ill youre youve hes shes weve were
		theyre theyve thats whats wheres whos dont doesnt didnt isnt arent wasnt werent cant couldnt wont wouldnt shouldnt
		hasnt havent hadnt kind`),
	set(`aber alle allem allen aller alles als also am an auch auf aus bei bin bis bist da dabei damit dann das dass dein
		deine dem den denn der des dessen die dies diese diesem diesen dieser dieses dir doch dort du durch ein eine einem einen
		einer eines er es etwas euer eure fur gegen gewesen hab habe haben hat hatte hatten hier hin hinter ich ihm ihn ihnen ihr
		ihre im in ist ja jede jeden jeder jedes jene jetzt kann kein keine konnen konnte machen man mein meine mich mir mit
		muss nach nicht nichts noch nun nur ob oder ohne sehr sein seine sich sie sind so soll sollte sondern sonst uber um und
		uns unser unter viel vom von vor wann war waren warst warum was weg weil welche welchen welcher welches wenn wer werde
		werden wie wieder will wir wird wo wollen wurde wurden zu zum zur zwar zwischen`),
	set(`a ai as au aux avait avec ayant car ce ceci cela ces cet cette ceux chez comme comment d dans de depuis des donc du
		elle elles en encore entre es est et etaient etait etant ete etes etre eu eux fait il ils j je juste l la laquelle le
		lequel les leur leurs lui ma mais me meme mes moi mon n ne ni non nos notre nous on ont ou par parce pas pendant peu
		peut plus pour pourquoi qu quand que quel quelle quelles quels qui quoi sa sans se ses si son sont suis sur ta te tes
		toi ton toujours tous tout toute toutes tres tu un une vos votre vous y`),
	set(`a al algo alguna algunas alguno algunos ante antes aqui asi aun cada como con contra cual cuales cuando cuanto de
		del desde donde dos durante e el ella ellas ellos en entre era eran es esa esas ese eso esos esta estaba estan estar
		estas este esto estos fue fueron ha habia han hasta hay la las le les lo los mas me mi mis mucho muy nada ni no nos
		nosotros o os otra otro para pero poco por porque que quien quienes se ser si sin sobre son soy su sus tambien tanto te
		tiene todo todos tu tus un una uno unos y ya yo`),
}

func set(text string) map[string]bool {
	m := make(map[string]bool)
	for _, w := range strings.Fields(text) {
		m[w] = true
	}
	return m
}

// Telling says of each loose clause whether it says what the question is after: function words of the question's
// language do not. Where nothing else is asked for, all of them do.
func (q Query) Telling() []bool {
	language, most := 0, 0
	for l, list := range functionWords {
		n := 0
		for _, c := range q.Any {
			if c.function(list) {
				n++
			}
		}
		if n > most {
			language, most = l, n
		}
	}
	tells := make([]bool, len(q.Any))
	for i, c := range q.Any {
		tells[i] = most == len(q.Any) || !c.function(functionWords[language])
	}
	return tells
}

func (c Clause) function(list map[string]bool) bool {
	return len(c) == 1 && !c[0].Prefix && list[c[0].Text]
}
