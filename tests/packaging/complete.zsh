# complete.zsh COMPLETIONS BIN LINE OUT: presses TAB at the end of LINE in an interactive zsh that finds completions in the
# folder COMPLETIONS and programs in BIN, and writes what is offered to OUT, a line each.
zmodload zsh/zpty
zpty shell "PATH=$2:\$PATH zsh -f -i"
send() { zpty -w shell "$1" }
send "fpath=($1 \$fpath); autoload -Uz compinit; compinit -u -D; bindkey '^I' complete-word"
send "compadd() { local -a out; builtin compadd -O out \"\$@\"; print -l -- \$out >> $4; builtin compadd \"\$@\" }"
sleep 0.5
zpty -w -n shell "$3"$'\t'
for try in {1..50}; do
  sleep 0.1
  [[ -s $4 ]] && break
done
zpty -d shell
