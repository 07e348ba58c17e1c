// A client on Pion, the WebRTC stack in Go: says a file of Opus packets, keeps what it hears as
// another, sends two messages, hangs up, and prints what it saw as JSON. It fails on what does not
// come. In the files each packet of 20 ms follows its length in two bytes (as in RFC 4571).
// Signaling is WHIP (RFC 9725); its fragments are those of RFC 8840.
package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/pion/webrtc"
	"github.com/pion/webrtc/pkg/media"
)

const (
	patience = 15 * time.Second
	frame    = 20 * time.Millisecond
	tail     = 5 // frames to listen after the last one
)

var (
	credential = regexp.MustCompile(`a=ice-(?:ufrag|pwd):\S+`)
	ufrag      = regexp.MustCompile(`a=ice-ufrag:(\S+)`)
	candidate  = regexp.MustCompile(`a=candidate:.+\r\n`)
)

type report struct {
	Ufrags   []string `json:"ufrags"`   // the other side's, one and each after a restart
	Remote   string   `json:"remote"`   // ADDRESS:PORT of the pair in use
	Messages []string `json:"messages"` // that came back
	Received int      `json:"received"` // RTP packets
	Closed   bool     `json:"closed"`   // by the other side, without our doing
}

type call struct {
	pc       *webrtc.PeerConnection
	key      string
	location string
	tag      string // of the ICE session
	answer   string
	states   chan webrtc.PeerConnectionState
	opened   chan struct{}
	closed   chan struct{} // the data channel
	messages chan string
	heard    *bufio.Writer
	packets  chan int // what the track brought, when it ends
}

func main() {
	target := flag.String("url", "", "WHIP endpoint")
	say := flag.String("say", "", "file to say")
	save := flag.String("save", "", "file to keep what is heard")
	trickle := flag.Bool("trickle", false, "offer no candidates, and send them later")
	restart := flag.Bool("restart", false, "restart ICE while speaking")
	unsaid := flag.Bool("no-delete", false, "only close the peer connection to hang up")
	flag.Parse()
	seen, err := place(*target, *say, *save, how{*trickle, *restart, !*unsaid})
	if err != nil {
		fmt.Fprintln(os.Stderr, "pion:", err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(seen); err != nil {
		os.Exit(1)
	}
}

type how struct{ trickle, restart, hangUp bool }

func place(target, say, save string, how how) (*report, error) {
	pc, err := webrtc.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		return nil, err
	}
	defer pc.Close()
	file, err := os.Create(save)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	c := &call{
		pc:       pc,
		key:      os.Getenv("SHUNT_API_KEY"),
		states:   make(chan webrtc.PeerConnectionState, 16),
		opened:   make(chan struct{}),
		closed:   make(chan struct{}, 1),
		messages: make(chan string, 2),
		heard:    bufio.NewWriter(file),
		packets:  make(chan int, 1),
	}
	voice, channel, err := c.prepare()
	if err != nil {
		return nil, err
	}
	if err := c.connect(target, how.trickle); err != nil {
		return nil, err
	}
	seen := &report{Ufrags: []string{ufrag.FindStringSubmatch(c.answer)[1]}}
	if seen.Messages, err = c.exchange(channel); err != nil {
		return nil, err
	}
	restarted := make(chan error, 1)
	if how.restart {
		go func() { restarted <- c.restart() }()
	} else {
		restarted <- nil
	}
	if err := speak(voice, say); err != nil {
		return nil, err
	}
	if failed, err := await(restarted, "the restart"); err != nil {
		return nil, err
	} else if failed != nil {
		return nil, failed
	}
	if now := ufrag.FindStringSubmatch(c.answer)[1]; now != seen.Ufrags[0] {
		seen.Ufrags = append(seen.Ufrags, now)
	}
	if seen.Remote, err = c.remote(); err != nil {
		return nil, err
	}
	if how.hangUp {
		if seen.Closed, err = c.hangUp(); err != nil {
			return nil, err
		}
	}
	if err := pc.Close(); err != nil && !seen.Closed { // after the other side, it complains
		return nil, err
	}
	if seen.Received, err = await(c.packets, "the track's end"); err != nil {
		return nil, err
	}
	return seen, c.heard.Flush()
}

func (c *call) prepare() (*webrtc.TrackLocalStaticSample, *webrtc.DataChannel, error) {
	opus := webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeOpus}
	voice, err := webrtc.NewTrackLocalStaticSample(opus, "voice", "pion")
	if err != nil {
		return nil, nil, err
	}
	if _, err := c.pc.AddTrack(voice); err != nil {
		return nil, nil, err
	}
	channel, err := c.pc.CreateDataChannel("pion", nil)
	if err != nil {
		return nil, nil, err
	}
	channel.OnOpen(func() { close(c.opened) })
	channel.OnClose(func() {
		select {
		case c.closed <- struct{}{}:
		default: // told already
		}
	})
	channel.OnMessage(func(message webrtc.DataChannelMessage) {
		kind := "binary"
		if message.IsString {
			kind = "text"
		}
		c.messages <- kind + ": " + string(message.Data)
	})
	c.pc.OnConnectionStateChange(func(state webrtc.PeerConnectionState) { c.states <- state })
	c.pc.OnTrack(func(track *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
		received := 0
		for {
			packet, _, err := track.ReadRTP()
			if err != nil {
				c.packets <- received
				return
			}
			received++
			// An error stays with the writer, until the file is flushed.
			binary.Write(c.heard, binary.BigEndian, uint16(len(packet.Payload)))
			c.heard.Write(packet.Payload)
		}
	})
	return voice, channel, nil
}

func (c *call) connect(target string, trickle bool) error {
	offer, err := c.describe(nil)
	if err != nil {
		return err
	}
	if trickle {
		offer = candidate.ReplaceAllString(offer, "")
	}
	status, body, header, err := c.request(http.MethodPost, target, "application/sdp", offer)
	if err != nil {
		return err
	}
	if status != http.StatusCreated {
		return fmt.Errorf("the offer got %d: %s", status, body)
	}
	c.answer, c.tag = body, header.Get("ETag")
	base, err := url.Parse(target)
	if err != nil {
		return err
	}
	location, err := base.Parse(header.Get("Location"))
	if err != nil {
		return err
	}
	c.location = location.String()
	if err := c.setAnswer(); err != nil {
		return err
	}
	if trickle {
		status, body, _, err := c.patch()
		if err != nil {
			return err
		}
		if status != http.StatusNoContent {
			return fmt.Errorf("the candidates got %d: %s", status, body)
		}
	}
	for {
		state, err := await(c.states, "the connection")
		if err != nil {
			return err
		}
		switch state {
		case webrtc.PeerConnectionStateConnected:
			return nil
		case webrtc.PeerConnectionStateFailed, webrtc.PeerConnectionStateClosed:
			return fmt.Errorf("the connection is %s", state)
		}
	}
}

// describe makes an offer with all candidates, and sets it.
func (c *call) describe(options *webrtc.OfferOptions) (string, error) {
	offer, err := c.pc.CreateOffer(options)
	if err != nil {
		return "", err
	}
	gathered := webrtc.GatheringCompletePromise(c.pc)
	if err := c.pc.SetLocalDescription(offer); err != nil {
		return "", err
	}
	_, err = await(gathered, "the candidates")
	return c.pc.LocalDescription().SDP, err
}

func (c *call) setAnswer() error {
	answer := webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: c.answer}
	return c.pc.SetRemoteDescription(answer)
}

// patch tells our credentials and candidates.
func (c *call) patch() (int, string, http.Header, error) {
	local := c.pc.LocalDescription().SDP
	lines := []string{"a=group:BUNDLE 0 1", "m=audio 9 UDP/TLS/RTP/SAVPF 0", "a=mid:0"}
	lines = append(lines, credential.FindAllString(local, 2)...)
	for _, line := range candidate.FindAllString(local, -1) {
		lines = append(lines, strings.TrimSpace(line))
	}
	lines = append(lines, "a=end-of-candidates", "")
	text := strings.Join(lines, "\r\n")
	return c.request(http.MethodPatch, c.location, "application/trickle-ice-sdpfrag", text)
}

// restart does as RFC 9725 section 4.3.3 says; the fragment's credentials take their place in the
// answer that there is.
func (c *call) restart() error {
	if _, err := c.describe(&webrtc.OfferOptions{ICERestart: true}); err != nil {
		return err
	}
	status, body, header, err := c.patch()
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("the restart got %d: %s", status, body)
	}
	fresh := credential.FindAllString(body, 2)
	if len(fresh) != 2 || header.Get("ETag") == c.tag {
		return fmt.Errorf("no new ICE session in the answer to the restart: %s", body)
	}
	c.tag = header.Get("ETag")
	c.answer = credential.ReplaceAllStringFunc(c.answer, func(old string) string {
		name, _, _ := strings.Cut(old, ":")
		if strings.HasPrefix(fresh[0], name) {
			return fresh[0]
		}
		return fresh[1]
	})
	return c.setAnswer()
}

// exchange sends a message of each kind, and returns what came back, in its order.
func (c *call) exchange(channel *webrtc.DataChannel) ([]string, error) {
	if _, err := await(c.opened, "the data channel"); err != nil {
		return nil, err
	}
	if err := channel.SendText("grüß Gott"); err != nil {
		return nil, err
	}
	if err := channel.Send(bytes.Repeat([]byte("shunt"), 2000)); err != nil { // in many packets
		return nil, err
	}
	var back []string
	for len(back) < 2 {
		message, err := await(c.messages, "a message")
		if err != nil {
			return nil, err
		}
		back = append(back, message)
	}
	return back, nil
}

// speak sends the file in its own time, and listens a while more.
func speak(voice *webrtc.TrackLocalStaticSample, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	packets := bufio.NewReader(file)
	ticker := time.NewTicker(frame)
	defer ticker.Stop()
	for rest := tail; rest > 0; <-ticker.C {
		packet, err := next(packets)
		switch {
		case errors.Is(err, io.EOF):
			rest--
		case err != nil:
			return err
		default:
			if err := voice.WriteSample(media.Sample{Data: packet, Duration: frame}); err != nil {
				return err
			}
		}
	}
	return nil
}

func next(packets io.Reader) ([]byte, error) {
	var size uint16
	if err := binary.Read(packets, binary.BigEndian, &size); err != nil {
		return nil, err
	}
	packet := make([]byte, size)
	_, err := io.ReadFull(packets, packet)
	return packet, err
}

func (c *call) remote() (string, error) {
	pair, err := c.pc.SCTP().Transport().ICETransport().GetSelectedCandidatePair()
	if err != nil || pair == nil {
		return "", fmt.Errorf("no pair is selected: %v", err)
	}
	return fmt.Sprintf("%s:%d", pair.Remote.Address, pair.Remote.Port), nil
}

// hangUp tells whether the other side then closed what there was.
func (c *call) hangUp() (bool, error) {
	status, body, _, err := c.request(http.MethodDelete, c.location, "", "")
	if err != nil {
		return false, err
	}
	if status != http.StatusOK && status != http.StatusNoContent {
		return false, fmt.Errorf("the DELETE got %d: %s", status, body)
	}
	_, err = await(c.closed, "the channel's end")
	return err == nil, err
}

func (c *call) request(method, to, kind, body string) (int, string, http.Header, error) {
	request, err := http.NewRequest(method, to, bytes.NewBufferString(body))
	if err != nil {
		return 0, "", nil, err
	}
	request.Header.Set("Authorization", "Bearer "+c.key)
	if kind != "" {
		request.Header.Set("Content-Type", kind)
	}
	if method == http.MethodPatch {
		request.Header.Set("If-Match", c.tag)
	}
	client := http.Client{Timeout: patience}
	response, err := client.Do(request)
	if err != nil {
		return 0, "", nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, string(text), response.Header, err
}

func await[T any](from <-chan T, what string) (T, error) {
	select {
	case got := <-from:
		return got, nil
	case <-time.After(patience):
		var none T
		return none, fmt.Errorf("%s did not come in %s", what, patience)
	}
}
